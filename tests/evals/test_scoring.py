"""Scores against one reference: made once, gone on with, and told with what so few images are worth."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from maskdit.config import ConfigError
from maskdit.data.image_array import Pictures
from maskdit.data.source import DataError
from maskdit.evals import reference as references
from maskdit.evals import scoring
from maskdit.evals.progress_file import Progress
from maskdit.evals.reference import ScoreError
from maskdit.evals.scoring import loader_of, prepare
from tests.encoded import write_pictures
from tests.features import Numbered, Other, images, loader, network

NAMES = ("fid", "sfid", "is", "kid", "pr")


def ready(folder=None, names=NAMES, **how):
    return prepare(
        names, network(), how.pop("reference", loader()), batch=8, folder=folder and epath.Path(folder), **how
    )


@pytest.fixture(scope="module")
def uninterrupted():
    return ready().of_samples(Numbered(), 43, 3, steps=2)


def test_samples_are_scored_as_the_same_images_are(tmp_path, uninterrupted):
    given = np.concatenate([images(1, seed=3000 + i) for i in range(43)])
    np.savez(tmp_path / "same.npz", arr_0=given)
    assert ready().of_pictures(Pictures(str(tmp_path / "same.npz"))) == uninterrupted
    floor = ready(held_out=loader(43, 8)).floor(30)
    assert floor.keys() == uninterrupted.keys() and ready().floor(30) == {}


def test_what_was_interrupted_goes_on_to_the_same_scores(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(Progress.__init__, "__defaults__", (-1.0,))
    with pytest.raises(KeyboardInterrupt):
        ready(tmp_path).of_samples(Numbered(most=30), 43, 3, steps=2)
    other = Numbered(variables={"params": np.ones(3, np.float32)})
    for model, seed, more in ((Numbered(), 4, {"steps": 2}), (Numbered(), 3, {"steps": 3}), (other, 3, {"steps": 2})):
        with pytest.raises(KeyboardInterrupt):  # of other draws: from the beginning
            ready(tmp_path).of_samples(dataclasses.replace(model, most=0), 43, seed, **more)
        assert model.asked == [(0, 8)]
    model = Numbered()
    assert ready(tmp_path).of_samples(model, 43, 3, steps=2) == uninterrupted
    assert model.asked[0][0] == 24 and sum(count for _, count in model.asked) == 24
    after = [path.name for path in epath.Path(tmp_path).iterdir()]
    assert len(after) == 1 and after[0].startswith("reference-")


def test_seeds_that_are_done_are_not_drawn_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):  # in the middle of the second
        ready(tmp_path).of_seeds(Numbered(most=16), 10, (3, 4), steps=2)
    model = Numbered()
    found = ready(tmp_path).of_seeds(model, 10, (3, 4), steps=2)
    assert sum(count for _, count in model.asked) == 16  # two batches of 8: the second seed alone
    assert found == ready().of_seeds(Numbered(), 10, (3, 4), steps=2)
    assert not list(epath.Path(tmp_path).glob("*.json"))


def test_a_reference_is_made_once(tmp_path, monkeypatch):
    first = ready(tmp_path)

    def never(*_, **__):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(references, "of_loader", never)
        second = ready(tmp_path)
        assert second.reference.about == first.reference.about  # what a record says of it does not change
        np.testing.assert_array_equal(second.reference.rows, first.reference.rows)
        for other in ({"reference": loader(23, 1)}, {"limit": 9}, {"names": ("fid",)}):
            with pytest.raises(AssertionError, match="read again"):
                ready(tmp_path, **other)
    assert first.reference.about["reference"]["records"] == 23 and first.reference.about["images"] == 23


def test_few_images_are_told_with_their_bias():
    made = ready()
    assert any("few images (59 for 6 features)" in line for line in made.notes(59))
    assert not any("few images" in line for line in made.notes(60))
    assert made.bias(10).keys() == {"fid", "sfid"}
    assert all(made.bias(10)[name] > 2 * made.bias(100)[name] > 0 for name in ("fid", "sfid"))
    assert any("small reference (23 images for 6 features)" in line for line in made.notes(60))
    assert not any("by about the bias" in line for line in made.notes(59, bias=False))
    places = ready(names=("sfid",), held_out=loader(43, 8)).notes(44)
    assert any("sfid is too high" in line for line in places) and any(
        "held-out: what 43 images" in line for line in places
    )
    alone = prepare(("is",), network(), None)
    assert alone.bias(10) == {} and alone.reference is None
    assert "8 by tf1-bilinear; network inception-fid" in alone.notes(4)[-1]


def test_references_that_cannot_be_had(tmp_path):
    with pytest.raises(ScoreError, match="these scores compare with a reference: give --reference"):
        prepare(("fd",), network(Other), None)
    folder = write_pictures(tmp_path / "pictures", count=3)
    with pytest.raises(DataError, match="give --size"):
        prepare(("fd",), network(Other), folder)
    with pytest.raises(ConfigError, match="no config file 'nowhere'"):
        prepare(("fd",), network(Other), "nowhere")


def test_data_by_name_may_have_held_out_images(tmp_path):
    assert loader_of("maskdit_emoji:smoke", None, part="held_out").source.split == "val"
    assert loader_of("maskdit_emoji:smoke", None).source.split == "train"
    folder = write_pictures(tmp_path / "pictures", count=3)
    assert len(loader_of(folder, 8, part="held_out").records) == 3
    config = scoring.configs.load("maskdit_emoji:smoke")
    config.data.latents = "gone"
    assert scoring.own_loader(config, "data").latents is None and config.data.latents == "gone"
    assert scoring.own_loader(config, "nothing") is None and scoring.own_loader(None, "data") is None

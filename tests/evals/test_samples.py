"""Samples by their numbers, and the file that they are drawn into part by part."""

import contextlib
import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from maskdit.contracts import Cond, ModelError
from maskdit.data.image_array import Pictures
from maskdit.data.latent_shards import held
from maskdit.evals import samples
from maskdit.evals.samples import drawn, write_samples
from maskdit.training.mesh import MeshShape
from tests.tokens import tiny_tokens


@dataclasses.dataclass
class Numbered:
    """A generator whose images show their number, label and text, and which ends after so many images."""

    most: int = 10**9
    devices: object = dataclasses.field(default_factory=lambda: MeshShape().make(jax.devices()[:1]))
    variables: dict = dataclasses.field(default_factory=lambda: {"params": np.arange(3.0, dtype=np.float32)})
    config: None = None
    ema: str = "0.9"
    step: int = 7
    sizes: list = dataclasses.field(default_factory=list)

    def sample(self, labels, *, count, first, seed, batch, text=None):
        self.sizes.append(count)
        self.most -= count
        if self.most < 0:
            raise KeyboardInterrupt
        shown = np.zeros((count, 2, 2, 3), np.uint8)
        shown[:, 0, 0, 0] = first + np.arange(count)
        shown[:, 0, 1, 0] = labels["kind"] if labels else 0
        shown[:, 1, 0, 0] = 0 if text is None else text.text[:, 0, 0]
        return shown + np.uint8(seed)


def together(chunks):
    """Chunks as one array; they follow each other."""
    chunks = list(chunks)
    assert [number for number, _ in chunks[1:]] == [number + len(images) for number, images in chunks[:-1]]
    return np.concatenate([images for _, images in chunks])


def test_labels_and_texts_belong_to_the_number_of_the_image():
    text = Cond(text=np.arange(3, dtype=np.float32)[:, None, None])
    for first, num, batch in ((0, 20, 8), (5, 11, 4), (17, 3, 64)):
        model = Numbered()
        asked = {"seed": 0, "batch": batch, "first": first, "labels": {"kind": [10, 20, 30, 40]}, "text": text}
        shown = together(drawn(model, num, **asked))
        numbers = np.arange(first, first + num)
        np.testing.assert_array_equal(shown[:, 0, 0, 0], numbers)
        np.testing.assert_array_equal(shown[:, 0, 1, 0], np.array([10, 20, 30, 40])[numbers % 4])
        np.testing.assert_array_equal(shown[:, 1, 0, 0], numbers % 3)
        assert len(set(model.sizes)) == 1, "another shape is another program"
    together(drawn(Numbered(), 4, seed=0, batch=2, labels={"kind": 9}))
    for wrong in ({"num": 0}, {"batch": 0}):
        with pytest.raises(ModelError, match="1 image or more"):
            next(drawn(Numbered(), **{"num": 1, "batch": 1, "seed": 0, **wrong}))


def test_a_generator_draws_the_same_images_however_they_are_cut():
    model = tiny_tokens()
    labels = {"style": ["noto", "fluent-3d", "fluent-flat"], "group": "objects"}
    how = {"seed": 2, "labels": labels, "steps": 2, "guidance": 1.0}
    whole = together(drawn(model, 13, batch=8, **how))
    plain = model.sample(**{**how, "labels": labels | {"style": (labels["style"] * 5)[:13]}}, count=13, batch=8)
    assert np.abs(whole.astype(int) - plain).max() <= 1
    part = together(drawn(model, 5, batch=64, first=7, **how))
    assert np.abs(whole[7:12].astype(int) - part).max() <= 1
    alone = dataclasses.replace(model, devices=MeshShape().make(jax.devices()[:1]))
    assert np.abs(whole[7:12].astype(int) - together(drawn(alone, 5, batch=2, first=7, **how))).max() <= 1


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(samples, "PART", 5)


ASKED = {"seed": 1, "batch": 4, "labels": {"kind": [10, 20, 30]}, "first": 2}
BESIDE = {"kind": ["a"] * 23}


def write(folder, model=None, **more):
    asked = {**ASKED, "facts": {"steps": 3, "labels": [{"kind": 10}]}, "beside": BESIDE, **more}
    write_samples(model or Numbered(), str(folder / "many.npz"), asked.pop("num", 23), **asked)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The bytes of 23 images in one go."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "PART", 5)
        write(folder)
    assert [path.name for path in folder.iterdir()] == ["many.npz"]
    found = np.load(folder / "many.npz")
    np.testing.assert_array_equal(found["arr_0"], together(drawn(Numbered(), 23, **ASKED)))
    assert list(found["kind"]) == BESIDE["kind"]
    return (folder / "many.npz").read_bytes()


def parts(folder):
    return sorted(path.name for path in (folder / "many.npz.parts").iterdir() if path.suffix == ".npy")


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_what_was_interrupted_goes_on_to_the_same_bytes(tmp_path, uninterrupted, capsys, batch):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, Numbered(most=13))
    assert parts(tmp_path) == ["000000.npy", "000001.npy"] and not (tmp_path / "many.npz").exists()
    # and what a process that is killed leaves
    (tmp_path / "many.npz.parts" / ".000002.npy.unfinished-x").mkdir()
    (tmp_path / "many.npz.parts" / "000000.npy").write_bytes(b"cut off")
    (tmp_path / "many.npz.parts" / "joined.npz").write_bytes(b"cut off")
    model = Numbered()
    write(tmp_path, model, batch=batch)
    assert "1 of 5 parts are there" in capsys.readouterr().out
    assert (tmp_path / "many.npz").read_bytes() == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["many.npz"]
    assert sum(model.sizes) <= 5 + 13 + 2 * (min(batch, 13) - 1), "the part that was there is not drawn again"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num": 24}, "num was 23, and is 24 now"),
        ({"seed": 4}, "seed was 1, and is 4 now"),
        ({"first": 0}, "first was 2, and is 0 now"),
        ({"facts": {"steps": 5, "labels": [{"kind": 10}]}}, "steps was 3, and is 5 now"),
        ({"facts": {"steps": 3, "labels": []}}, r'labels was \[{"kind": 10}\], and is \[\] now'),
        ({"model": Numbered(variables={"params": np.ones(3, np.float32)})}, "weights was .*, and is"),
        ({"model": Numbered(step=8)}, "step was 7, and is 8 now"),
    ],
)
def test_other_settings_do_not_go_on(tmp_path, uninterrupted, more, message):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, Numbered(most=13))
    with pytest.raises(ModelError, match=message):
        write(tmp_path, **more)
    write(tmp_path)
    assert (tmp_path / "many.npz").read_bytes() == uninterrupted


def test_nothing_is_left_where_nothing_was_drawn(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, Numbered(most=3))
    assert not list(tmp_path.iterdir())


def test_two_do_not_draw_into_one_file(tmp_path):
    folder = tmp_path / "many.npz.parts"
    folder.mkdir()
    with held(pathlib.Path(folder)), pytest.raises(ModelError, match="another process draws into"):
        write(tmp_path)
    assert folder.exists()
    (folder / "000000.npy").write_bytes(b"of something else")
    with pytest.raises(ModelError, match=r"without a manifest.json"):
        write(tmp_path)


def test_a_full_disk_is_told_and_what_is_there_stays(tmp_path, uninterrupted, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(samples, "write_npz", full)
        stack.enter_context(pytest.raises(ModelError, match="No space left on device; what is complete stays"))
        write(tmp_path)
    assert len(parts(tmp_path)) == 5
    model = Numbered()
    write(tmp_path, model)
    assert not model.sizes and (tmp_path / "many.npz").read_bytes() == uninterrupted


def test_an_earlier_file_stays_until_the_new_one_is_whole(tmp_path):
    write(tmp_path, num=6)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, Numbered(most=13))
    assert len(Pictures(str(tmp_path / "many.npz"))) == 6

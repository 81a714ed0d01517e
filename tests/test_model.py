import dataclasses

import jax
import numpy as np
import pytest

import maskdit
from maskdit.contracts import ModelError, NotFiniteError
from maskdit.samplers.ancestral import DDIM
from maskdit.train import train
from maskdit.training.checkpoint import CheckpointError
from tests.tiny import tiny

LABELS = {"style": "noto", "group": "food-drink"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with two averages and several kept steps."""
    path = tmp_path_factory.mktemp("run")
    train(tiny({"steps": 12, "ema": (0.5, 0.9), "checkpoints.every": 4}), str(path))
    return str(path)


@pytest.fixture(scope="module")
def model(workdir):
    return maskdit.load(workdir)


def test_images_of_a_seed_do_not_depend_on_the_batch(model):
    whole = model.sample(LABELS, count=7, seed=3, steps=3)
    part = model.sample(LABELS, count=4, first=3, seed=3, steps=3, batch=2)
    assert np.abs(whole[3:].astype(int) - part).max() <= 1
    assert not np.array_equal(whole[:4], part)
    assert not np.array_equal(model.sample(LABELS, count=4, seed=4, steps=3), whole[:4])


def test_random_labels_belong_to_the_number_of_the_image(model):
    whole = model.sample(count=5, seed=1, steps=1)
    np.testing.assert_allclose(whole[3:].astype(int), model.sample(count=2, first=3, seed=1, steps=1), atol=1)


def test_images_that_are_no_numbers_are_told_by_their_numbers(model):
    params = jax.tree.map(lambda leaf: leaf * np.nan, model.variables["params"])
    broken = dataclasses.replace(model, variables={**model.variables, "params": params})
    with pytest.raises(NotFiniteError, match=r"2 of 2 images .* \(images 5, 6\)"):
        broken.sample(LABELS, count=2, first=5, steps=3)


def test_labels_are_told(model):
    drawn = model.labels(count=4, seed=1)
    np.testing.assert_array_equal(model.sample(drawn, seed=1, steps=1), model.sample(count=4, seed=1, steps=1))
    assert model.labels(LABELS, count=2) == {"style": ["noto"] * 2, "group": ["food-drink"] * 2}


def test_averages_and_steps_by_name(workdir, model):
    kernels = {
        name: np.asarray(maskdit.load(workdir, ema=name).variables["params"]["network"]["final"]["linear"]["kernel"])
        for name in ("0.5", "0.9", "none")
    }
    default = np.asarray(model.variables["params"]["network"]["final"]["linear"]["kernel"])
    np.testing.assert_array_equal(default, kernels["0.5"])
    assert len({kernel.tobytes() for kernel in kernels.values()}) == 3
    earlier = maskdit.load(workdir, step=8).variables["params"]["network"]["final"]["linear"]["kernel"]
    assert not np.array_equal(earlier, default)


def test_encode_and_decode(model):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    latents = model.encode(images)
    assert latents.shape == (2, 4, 4, 24)
    np.testing.assert_allclose(model.encode(images / np.float32(127.5) - 1), latents, atol=1e-5)
    again = model.encode(model.decode(latents))  # decoding rounds and clips
    assert np.corrcoef(again.ravel(), latents.ravel())[0, 1] > 0.95


def test_model_file_holds_the_same_model(model, tmp_path):
    maskdit.save(model, str(tmp_path / "model.npz"))
    again = maskdit.load(str(tmp_path / "model.npz"))
    kw = {"count": 3, "seed": 5, "steps": 2}
    np.testing.assert_array_equal(again.sample(LABELS, **kw), model.sample(LABELS, **kw))
    with pytest.raises(ModelError, match="npz"):
        maskdit.save(model, str(tmp_path / "model.bin"))


def test_other_samplers_and_a_weak_model(model, workdir):
    plain = model.sample(LABELS, count=2, steps=2, guidance=1.0)
    assert not np.array_equal(model.sample(LABELS, count=2, steps=2, guidance=1.0, sampler=DDIM(eta=0.5)), plain)
    weak = maskdit.load(workdir, step=4)
    same = model.sample(LABELS, count=2, steps=2, guidance=3.0, weak=model)
    np.testing.assert_allclose(same.astype(int), plain, atol=1)
    assert not np.array_equal(model.sample(LABELS, count=2, steps=2, guidance=3.0, weak=weak), plain)


def test_an_image_is_edited_in_the_latents(model):
    picture = model.sample(LABELS, count=1, steps=2, seed=9)[0]
    hole = np.zeros((64, 64), bool)
    hole[:30, 20:] = True
    kw = {"steps": 3, "image": picture, "mask": hole}
    made = model.sample(LABELS, count=3, **kw)
    np.testing.assert_array_equal(made[:, ~hole], np.broadcast_to(picture[~hole], made[:, ~hole].shape))
    assert not np.array_equal(made[0][hole], made[1][hole]), "the hole is drawn anew"
    seen = model.sample(LABELS, count=3, trajectory=True, **kw)
    assert seen.shape == (3, 3, 64, 64, 3)
    assert np.abs(seen[:, -1].astype(int) - made).max() <= 1
    everywhere = model.sample(LABELS, count=2, steps=3, image=picture, mask=np.ones((64, 64), bool))
    assert np.abs(everywhere.astype(int) - model.sample(LABELS, count=2, steps=3)).max() <= 1


@pytest.mark.parametrize(
    ("labels", "kw", "message"),
    [
        ({"style": "nto", "group": "objects"}, {}, "did you mean 'noto'"),
        ({"style": "noto"}, {}, "group is missing"),
        ({"style": "noto", "grup": "objects"}, {}, "did you mean 'group'"),
        ({"style": 9, "group": 0}, {}, "0 to 3, got 9"),
        (LABELS, {"steps": 0}, "1 or more steps"),
        (LABELS, {"steps": -3}, "1 or more steps"),
        (LABELS, {"count": 0}, "count must be 1"),
        (LABELS, {"seed": -1}, "seed is 0 or more"),
        (LABELS, {"first": -1}, "first is 0 or more"),
        (LABELS, {"batch": 0}, "batch is 1 or more"),
        ({"style": [], "group": 0}, {}, "empty list"),
    ],
)
def test_bad_requests_are_answered(model, labels, kw, message):
    with pytest.raises(ModelError, match=message):
        model.sample(labels, **kw)


def test_guidance_needs_a_model_that_was_trained_for_it(model):
    deaf = dataclasses.replace(model, task=dataclasses.replace(model.task, label_drop=0.0))
    with pytest.raises(ModelError, match="label_drop"):
        deaf.sample(LABELS, count=1, guidance=2.0)
    assert deaf.sample(LABELS, count=1, steps=1, guidance=1.0).shape == (1, 64, 64, 3)


def test_bad_arrays_are_answered(model):
    with pytest.raises(ModelError, match=r"\[B, H, W, 3\]"):
        model.encode(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ModelError, match="multiples of 16"):
        model.encode(np.zeros((1, 60, 64, 3), np.uint8))
    with pytest.raises(ModelError, match="finite"):
        model.encode(np.full((1, 64, 64, 3), np.nan))
    with pytest.raises(ModelError, match="24"):
        model.decode(np.zeros((1, 4, 4, 3)))


def test_missing_checkpoints_are_answered(workdir, tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        maskdit.load(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"keeps the steps 4, 8, 12; got step 5"):
        maskdit.load(workdir, step=5)
    with pytest.raises(CheckpointError, match=r"averages 0\.5, 0\.9"):
        maskdit.load(workdir, ema="0.999")


def test_run_without_averages(tmp_path):
    train(tiny({"steps": 1, "ema": ()}), str(tmp_path))
    assert maskdit.load(str(tmp_path)).sample(LABELS, count=1, steps=1).shape == (1, 64, 64, 3)
    with pytest.raises(CheckpointError, match="no averages"):
        maskdit.load(str(tmp_path), ema="0.5")

"""A generator of token ids: what it trains on, and what does not go with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import ModelError, Plan
from maskdit.draw import Draw
from maskdit.networks.enat import ENAT
from maskdit.processes.autoregressive import Autoregressive
from maskdit.processes.masked import BatchCounts, Masked
from maskdit.samplers.guidance import ClassifierFree
from maskdit.tasks.task import Context
from tests.tokens import tiny_tokens

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
LABELS = {"style": np.arange(4, dtype=np.int32), "group": np.arange(4, dtype=np.int32)}


@pytest.fixture(scope="module")
def model():
    return tiny_tokens()


def test_stored_ids_are_trained_on_as_images_are(model):
    params, frozen = model.variables["params"], model.variables["frozen"]

    @jax.jit
    def loss(arrays):
        ctx = Context(batch={**arrays, **LABELS}, draw=Draw(0).at(np.arange(4)), step=jnp.zeros((), int), plan=Plan())
        return model.task.loss("generator", params, ctx.replace(frozen=frozen))[0].value

    stored = loss({"ids": model.encode(IMAGES)})
    np.testing.assert_allclose(stored, loss({"image": IMAGES}), rtol=1e-6)
    assert np.isfinite(stored).all()


def changed(task, network=None, **fields):
    """The task with fields of its network or its own changed."""
    return dataclasses.replace(task, network=task.network.clone(**(network or {})), **fields)


def counting(task):
    """The task with a network that is told how many tokens are masked."""
    sizes = {"width": 16, "depth": 1, "decoder_depth": 1, "heads": 2}
    return dataclasses.replace(task, network=ENAT(1024, (8, 8), classes=task.network.classes, **sizes))


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (lambda task: task, "moments", r"holds continuous moments, and the network takes those of a discrete"),
        (
            lambda task: changed(task, {"vocabulary": 512}),
            "ids",
            "1024 codes and the network 512: set .*vocabulary=1024",
        ),
        (
            lambda task: changed(task, {"grid": (4, 4)}),
            "ids",
            r"ids of \(64,\) become ids of \(64,\), .* takes \(16,\)",
        ),
        (lambda task: changed(task, process=Masked(counts=BatchCounts())), "ids", "tells .* MaskGIT does not take it"),
        (lambda task: changed(task, process=Autoregressive()), "ids", "the order of tokens, and MaskGIT does not take"),
        (counting, "ids", "Masked as it is set does not tell the network the number of masks, and ENAT needs it"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(model, change, name, message):
    shape = {"ids": (64,), "moments": (8, 8, 16)}[name]
    with pytest.raises(ValueError, match=message):
        change(model.task).check({name: jax.ShapeDtypeStruct((8, *shape), jnp.int32)}, model.vocabulary)


def test_the_bare_network_takes_codes_and_the_mask_alone(model):
    ids = np.full((2, 64), 1024)
    labels = {name: array[:2] for name, array in LABELS.items()}
    assert model.predict(ids, np.ones(2), labels).x.shape == (2, 64, 1024)
    for wrong in (ids + 1, ids - 1030, ids.astype(float)):
        with pytest.raises(ModelError, match="whole numbers from 0 to 1024, the mask"):
            model.predict(wrong, np.ones(2), labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": IMAGES[0], "mask": np.full((64, 64), 10, np.uint8)}, "a mask is of bools"),
        ({"sampler": "halton"}, "a sampler is an object"),
        ({"steps": 2.5}, "a whole number, got 2.5"),
        ({"guidance": float("nan")}, "a finite number"),
    ],
)
def test_sampling_refuses_settings_of_another_kind(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.sample(count=1, **settings)


def test_guidance_that_only_begins_off_one_needs_dropped_labels_too(model):
    never = dataclasses.replace(model, task=dataclasses.replace(model.task, label_drop=0.0))
    grown = dataclasses.replace(never, guidance=ClassifierFree(weight=1.0, start=4.0, schedule="linear"))
    with pytest.raises(ModelError, match="trained without dropping labels"):
        grown.check()
    dataclasses.replace(never, guidance=None).check()

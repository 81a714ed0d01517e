import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskdit
from maskdit import config as configs
from maskdit.contracts import ModelError, Plan
from maskdit.draw import Draw
from maskdit.encoders.classifier import Classified, ConvClassifier
from maskdit.tasks.classifier import Classifier
from maskdit.tasks.task import Context
from maskdit.tokenizers.linear import LinearPatches
from maskdit.train import train
from maskdit.training.optim import Group

NET = ConvClassifier(classes=configs.Named(style=4, group=8), stem=4, widths=(8,), blocks=(1,), features=8)
IMAGES = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), np.uint8)
BATCH = {
    "image": jnp.asarray(IMAGES),
    "style": jnp.arange(6) % 4,
    "group": jnp.arange(6),
    "weight": jnp.array([1.0, 1, 1, 1, 1, 0]),
}


class Echo:
    """A network that hands back the images it saw."""

    classes = NET.classes

    def apply(self, variables, images):
        return Classified({name: jnp.zeros((len(images), count)) for name, count in self.classes.items()}, images)


def made(network, **kw):
    return Classifier(network, groups=configs.Named(classifier=Group()), **kw)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: made(NET).init(Draw(0), BATCH)[0])()


@functools.partial(jax.jit, static_argnames=("task",))
def loss(params, rows, frozen, *, task):
    batch = {name: array[rows] for name, array in BATCH.items()}
    return task.loss("classifier", params, Context(batch, Draw(3).at(rows), jnp.int32(0), Plan(), frozen=frozen))[0]


def degrading(channels, **kw):
    tokenizer = LinearPatches(patch=4, channels=channels)
    task = made(NET, tokenizer=tokenizer, **kw)
    return task, task.freeze(Draw(0), lambda: [IMAGES])


ALL = jnp.arange(6)


def test_cross_entropies_add_up_and_smoothing_follows_its_formula(params):
    said = loss(params, ALL, {}, task=made(NET)).prediction
    for smoothing in (0.0, 0.3):
        expected = np.zeros(6)
        for name, logits in said.logits.items():
            log = np.asarray(jax.nn.log_softmax(logits))
            expected -= (1 - smoothing) * log[np.arange(6), BATCH[name]] + smoothing * log.mean(1)
        value = loss(params, ALL, {}, task=made(NET, smoothing=smoothing)).value
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_row_is_augmented_alike_in_any_batch(params):
    task, frozen = degrading(4, degrade=0.5, noise=1.0, shift=2)
    whole, part = loss(params, ALL, frozen, task=task), loss(params, ALL[2:5], frozen, task=task)
    np.testing.assert_allclose(whole.value[2:5], part.value, rtol=1e-4)
    assert not np.allclose(whole.value, loss(params, ALL, {}, task=made(NET)).value, rtol=1e-3)


def test_degrading_shows_what_the_tokenizer_keeps(params):
    plain = loss(params, ALL, {}, task=made(NET)).value
    for channels, lossless in ((48, True), (2, False)):
        task, frozen = degrading(channels, degrade=1.0)
        assert np.allclose(loss(params, ALL, frozen, task=task).value, plain, atol=1e-3) == lossless


def test_images_are_moved_by_whole_pixels_with_their_edges_repeated():
    task = made(Echo(), shift=2)
    seen = np.asarray(loss({"network": {}}, ALL, {}, task=task).prediction.features)
    floats = IMAGES.astype(np.float32) / 127.5 - 1
    padded = np.pad(floats, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    moves = set()
    for image, around in zip(seen, padded, strict=True):
        found = [
            (y, x) for y in range(5) for x in range(5) if np.allclose(around[y : y + 8, x : x + 8], image, atol=1e-5)
        ]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) > 2


def test_held_out_counts_real_rows_without_smoothing_or_augmentation(params):
    task, frozen = degrading(48, degrade=1.0, noise=5.0, shift=2, smoothing=0.5)
    held_out = task.held_out(params, Context(BATCH, Draw(0).at(ALL), jnp.int32(0), None, frozen=frozen))
    np.testing.assert_allclose(held_out.value, loss(params, ALL, {}, task=made(NET)).value, rtol=1e-5)
    np.testing.assert_array_equal(held_out.weight, BATCH["weight"])
    for name in ("style", "group"):  # 48 channels keep all of a patch
        accuracy = held_out.metrics[f"accuracy/{name}"]
        np.testing.assert_array_equal(accuracy, held_out.metrics[f"degraded/accuracy/{name}"])


@pytest.mark.parametrize("kw", [{"degrade": 0.5}, {"smoothing": 1.5}, {"shift": -1}])
def test_numbers_out_of_range(kw):
    with pytest.raises(ValueError, match=r"tokenizer|lies in 0 to 1|0 or more"):
        made(NET, **kw)


@pytest.mark.parametrize("vocabulary", [{"style": tuple("abcd")}, {"style": tuple("abcd"), "group": ("x",)}])
def test_data_that_do_not_fit(vocabulary):
    with pytest.raises(ValueError, match=r"task\.network\.classes"):
        made(NET).check(BATCH, vocabulary)


def test_trained_saved_and_loaded(tmp_path):
    config = configs.load(
        "emoji_classifier:smoke", {"task.network.blocks": (0, 0, 0), "data.size": 16, "held_out.size": 16}
    )
    for path, value in {"steps": 2, "batch": 8, "log.tensorboard": False, "evaluation.examples": 8}.items():
        configs.override(config, path, value)
    train(config, str(tmp_path / "run"))
    model = maskdit.load(str(tmp_path / "run"))
    maskdit.save(model, str(tmp_path / "small.npz"), "float16")
    small = maskdit.load(str(tmp_path / "small.npz"))
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    chances, classes = model.probabilities(images), small.classify(images, batch=2)
    for name in ("style", "group"):
        np.testing.assert_allclose(chances[name].sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(chances[name], small.probabilities(images)[name], atol=5e-3)
        assert classes[name].shape == (5,)
    np.testing.assert_allclose(small.features(images, batch=2), small.features(images), atol=1e-5)
    assert "frozen" not in small.variables or not small.variables["frozen"]
    for wrong in (images[0], images.astype(np.float32), images[:, :8]):
        with pytest.raises(ModelError, match=r"uint8 \[N, 16, 16, 3\]"):
            small.classify(wrong)

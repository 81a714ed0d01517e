"""Training a generator on latents that were encoded beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit import config
from maskdit.config import pretrained, spec
from maskdit.data.source import DataError
from maskdit.describe import describe
from maskdit.draw import Draw
from maskdit.encode import encode
from maskdit.performance import programs
from maskdit.performance.subject import Subject
from maskdit.tokenizers.vae import VAE
from maskdit.train import train
from maskdit.training.mesh import MeshShape
from tests.encoded import TINY, moments, variables, write_tokenizer
from tests.tiny import tiny


def configured(source, **overrides):
    """The tiny run on the tiny VAE's latents of emoji at 16 pixels."""
    found = tiny({"steps": 2, "data.size": 16, "held_out.size": 16, "task.network.input_size": 8, **overrides})
    found.task.network.channels, found.task.groups.generator.optimizer.schedule.warmup = 2, 5
    found.task.tokenizer = pretrained(source, spec=spec(VAE, **TINY))
    return found


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("vae") / "vae.npz")


@pytest.fixture(scope="module")
def folder(vae, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("latents") / "out")
    split = [("data.source.split", "val")]
    return encode(vae, "maskdit_emoji", out, overrides=split, size=16, dtype="float32", shard_records=300)


def test_latents_train_what_images_train(vae, folder, tmp_path):
    images = train(configured(vae), str(tmp_path / "images"))
    latents = train(configured(vae, **{"data.latents": folder}), str(tmp_path / "latents"))
    for ours, theirs in zip(jax.tree.leaves(latents.params), jax.tree.leaves(images.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    moved = zip(jax.tree.leaves(images.ema), jax.tree.leaves(images.params), strict=True)
    assert max(np.abs(average - now).max() for average, now in moved) > 2e-4  # much more than the two differ
    assert '"held_out/loss"' in (tmp_path / "latents" / "metrics.jsonl").read_text()  # of images


def test_a_folder_of_other_weights_is_refused(folder, tmp_path):
    other = write_tokenizer(tmp_path / "other.npz", variables(seed=1))
    with pytest.raises(DataError, match=r"made by the encoder of .*vae.npz, VAE with checksum .* this run's tokenizer"):
        train(configured(other, **{"data.latents": folder}), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints" / "2").exists()


def test_a_tokenizer_to_be_fitted_has_no_images(folder, tmp_path):
    linear = tiny({"data.size": 16, "held_out.size": 16, "task.tokenizer.patch": 2, "task.tokenizer.channels": 2})
    linear.task.network.input_size, linear.task.network.channels = 8, 2
    linear.data.latents = folder
    with pytest.raises(ValueError, match="holds moments of a posterior, and the tokenizer LinearPatches has none"):
        train(linear, str(tmp_path / "moments"))
    values = encode(linear_file(tmp_path), "maskdit_emoji", str(tmp_path / "values"), overrides=SPLIT, size=16)
    linear.data.latents = values
    with pytest.raises(DataError, match=r"this tokenizer is fitted to images, and data.latents gives latents"):
        train(linear, str(tmp_path / "values_run"))


SPLIT = [("data.source.split", "val")]


def linear_file(tmp_path):
    entry = tiny({"task.tokenizer.patch": 2, "task.tokenizer.channels": 2}).task.tokenizer
    made = config.build(entry).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return write_tokenizer(tmp_path / "linear.npz", jax.device_get(made), entry)


def test_shapes_that_do_not_fit_are_refused(vae, folder):
    task = config.build(configured(vae).task)
    vocabulary = {"style": tuple("abcd"), "group": tuple("abcdefgh")}
    for name, shape, message in (
        ("moments", (4, 4, 4), r"moments of \(4, 4, 4\) become latents of \(4, 4, 2\), but .*input_size=4 and"),
        ("values", (8, 8, 4), r"values of \(8, 8, 4\) .* task.network.channels=4"),
        ("ids", (64,), "holds token ids, and the network takes those of a continuous tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            task.check({name: jax.ShapeDtypeStruct((8, *shape), jnp.float16)}, vocabulary)


def test_the_posterior_is_drawn_as_from_images(vae):
    task, frozen = config.build(configured(vae).task), {"tokenizer": variables()}
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)

    @jax.jit
    def latents(batch, key):
        return task._latents(batch, frozen, None if key is None else Draw(key).at(np.arange(3)))

    key, stored = jax.random.key(0), {"moments": moments(images)}
    drawn = latents(stored, key)
    np.testing.assert_allclose(drawn, latents({"image": images}, key), atol=1e-5)
    mean = latents(stored, None)
    assert np.abs(drawn - mean).max() > 1e-3
    half = task._latents({"values": mean.astype(jnp.float16)}, frozen, None)
    assert half.dtype == jnp.float32


def test_programs_and_figures_know_of_latents(vae, folder):
    found = configured(vae, **{"data.latents": folder})
    run = config.build(found)
    (step, *_) = programs.training_steps(run, MeshShape().make())
    batch = step.lowered.in_avals[0][2]
    assert batch["moments"].shape == (8, 8, 8, 4) and "image" not in batch
    assert "parameters" in describe(found)
    subject = Subject(found)
    assert subject.resident["moments"].dtype == np.float32
    assert next(subject._images()).shape == (8, 16, 16, 3)

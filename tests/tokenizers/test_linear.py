import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Latents
from maskdit.tokenizers.linear import LinearPatches
from maskdit.tokenizers.pixels import Pixels


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (12, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + draw.integers(-20, 20, coarse.shape), 0, 255).astype(np.uint8)


def test_all_components_rebuild_the_image(images):
    tokenizer = LinearPatches(patch=4, channels=48)
    variables = tokenizer.fit([images])
    x = images / 127.5 - 1
    np.testing.assert_allclose(tokenizer.apply(variables, jnp.asarray(x, jnp.float32)), x, atol=1e-4)


def test_leading_components_are_the_best_basis(images):
    tokenizer = LinearPatches(patch=4, channels=3)
    variables = tokenizer.fit([images[:5], images[5:]])
    x = jnp.asarray(images / 127.5 - 1, jnp.float32)
    ours = float(jnp.square(tokenizer.apply(variables, x) - x).mean())
    cut = np.asarray(x).reshape(12, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48)
    values = np.linalg.svd(cut - cut.mean(0), compute_uv=False)
    assert ours == pytest.approx(float((values[3:] ** 2).sum()) / cut.size, rel=1e-3)


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_latents_have_the_spread_asked_for(images, whiten):
    tokenizer = LinearPatches(patch=4, channels=6, std=0.5, whiten=whiten)
    z = tokenizer.apply(tokenizer.fit([images]), jnp.asarray(images / 127.5 - 1), method="encode").values
    spread = np.asarray(z.std((0, 1, 2)))
    assert np.sqrt((spread**2).mean()) == pytest.approx(0.5, rel=0.02)
    assert (spread.max() / spread.min() < 1.1) == (whiten == 1.0)


def test_fit_gives_the_same_bytes_however_images_are_batched_by_it(images):
    tokenizer = LinearPatches(patch=4, channels=6)
    first, second = tokenizer.fit([images[:6], images[6:]]), tokenizer.fit(iter([images[:6], images[6:]]))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_unusable_fits_are_refused():
    with pytest.raises(ValueError, match="no images"):
        LinearPatches().fit([])
    with pytest.raises(ValueError, match="fewer than"):
        LinearPatches(patch=2, channels=24).fit([])


def test_pixels_are_their_own_latents():
    tokenizer, x = Pixels(scale=0.5), jnp.ones((1, 4, 4, 3))
    z = tokenizer.apply({}, x, method="encode").values
    np.testing.assert_array_equal(z, 0.5 * x)
    np.testing.assert_array_equal(tokenizer.apply({}, Latents(values=z), method="decode"), x)

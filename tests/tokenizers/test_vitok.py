"""ViTok: what its bottleneck holds, which places its tokens know, and the sizes of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.contracts import Latents
from maskdit.draw import Draw
from maskdit.tokenizers.vitok import SIZES, GridTransformer, ViTok, size

TINY = ViTok(patch=4, channels=3, encoder=(12, 1, 1), decoder=(16, 2, 2), scale=0.5, shift=0.25)


def filled(module, *inputs):
    shapes = jax.eval_shape(lambda key: module.init(key, *inputs), jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    return {"params": jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), meta.unbox(shapes))}


@pytest.fixture(scope="module")
def tiny():
    images = np.random.default_rng(1).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    return filled(TINY, images), images


def test_bottleneck_holds_tokens_times_channels_numbers(tiny):
    variables, images = tiny
    latents = TINY.apply(variables, images, method="encode")
    assert latents.values.shape == (2, 2, 3, 3) and latents.values[0].size == (8 * 12 // 4**2) * 3
    decoded = TINY.apply(variables, latents, method="decode")
    assert decoded.shape == images.shape and decoded.dtype == jnp.float32
    only = TINY.apply(variables, Latents(values=latents.values), method="decode")
    np.testing.assert_array_equal(only, decoded)  # nothing goes past the bottleneck


def test_gradient_of_a_drawn_reconstruction_reaches_every_parameter(tiny):
    variables, images = tiny

    def loss(variables):
        latents = TINY.apply(variables, images, draw=Draw(0), method="encode")
        decoded = TINY.apply(variables, latents, method="decode")
        return jnp.square(decoded - images).mean() + 1e-3 * latents.aux["kl"].mean()

    gradient = jax.jit(jax.grad(loss))(variables)
    dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradient) if not np.abs(g).max() > 1e-9]
    assert dead == []


def test_moments_make_the_latents_again(tiny):
    variables, images = tiny
    latents = TINY.apply(variables, images, draw=Draw(3), method="encode")
    again = TINY.posterior(latents.aux["moments"], draw=Draw(3))
    np.testing.assert_array_equal(again.values, latents.values)
    mean, logvar = jnp.split(latents.aux["moments"], 2, axis=-1)
    z = mean + jnp.exp(logvar / 2) * Draw(3).normal("posterior", mean.shape)
    np.testing.assert_allclose(latents.values, (z - 0.25) * 0.5, atol=1e-6)
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3))
    np.testing.assert_allclose(latents.aux["kl"], kl, rtol=1e-5)


def test_scanned_blocks_give_the_same(tiny):
    variables, images = tiny
    scanned = TINY.clone(scan=True, remat="full")
    np.testing.assert_allclose(scanned.apply(variables, images), TINY.apply(variables, images), atol=1e-5)


def test_equal_tokens_are_told_apart_by_their_places_only():
    """Attention over equal tokens gives equal tokens; with one other token, the places around it differ."""
    side = GridTransformer(width=8, depth=1, heads=1, features=2)
    x = np.ones((1, 6, 3), np.float32)
    variables = filled(side, x, (2, 3))
    out = side.apply(variables, x, (2, 3))
    np.testing.assert_allclose(out, jnp.broadcast_to(out[:, :1], out.shape), atol=1e-5)
    x[0, 0] = -2
    out = np.asarray(side.apply(variables, x, (2, 3)))[0, 1:]
    assert np.abs(out[:, None] - out[None]).max(-1)[~np.eye(5, dtype=bool)].min() > 1e-5
    turned = np.asarray(side.apply(variables, x, (3, 2)))[0, 1:]
    assert np.abs(out - turned).max() > 1e-4


@pytest.mark.parametrize(("name", "millions"), [("S", 43.3), ("B", 85.8), ("L", 383.7)])
def test_sides_have_the_published_parameters(name, millions):
    """Table 1, for an encoder with patches of 16 pixels and 16 channels."""
    side = GridTransformer(*SIZES[name], features=32)
    shapes = jax.eval_shape(lambda x: side.init(jax.random.key(0), x, (2, 2)), jnp.zeros((1, 4, 768)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == pytest.approx(millions * 1e6, rel=5e-3)


def test_sizes_by_name():
    assert size("S-L/8") == {"encoder": SIZES["S"], "decoder": SIZES["L"], "patch": 8}
    for name in ("S/16", "S-B", "S-M/16", "S-B/x"):
        with pytest.raises(ValueError, match="as in 'S-B/16'"):
            size(name)


def test_what_it_cannot_take_is_refused(tiny):
    variables, images = tiny
    with pytest.raises(ValueError, match="10 x 12 do not divide into patches of side 4"):
        TINY.apply(variables, images[:, :6].repeat(2, 1)[:, :10], method="encode")
    with pytest.raises(ValueError, match="decodes values"):
        TINY.apply(variables, Latents(ids=jnp.zeros((1, 6), jnp.int32)), method="decode")
    with pytest.raises(ValueError, match="channels divide by 4, not 6"):
        TINY.clone(encoder=(12, 1, 2)).init(jax.random.key(0), images)

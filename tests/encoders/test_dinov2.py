"""DINOv2's own arithmetic, positions and faults; the published network is a golden case."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.encoders.dinov2 import DEVIATION, MEAN, DINOv2

TINY = DINOv2(width=8, depth=2, heads=2, patch=2, registers=2, table_size=8, size=4, offset=0.0, antialias=True)
PLAIN = {"xla_backend_optimization_level": 0}  # compiling is most of the time


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def apply(params, *inputs, method=None, **fields):
    network = dataclasses.replace(TINY, **fields)
    return network.apply({"params": params}, *inputs, method=method)


def images(*shape):
    return np.random.default_rng(1).standard_normal((*shape, 3), np.float32)


def test_patches_that_know_no_place_may_be_shuffled(params):
    """Without positions the class token does not see the order; with the table it does."""
    x = images(1, 8, 8)
    both = np.concatenate([x, np.roll(x, (2, 4), (1, 2))])  # by whole patches
    tokens = jax.jit(lambda params, x: apply(params, x, method="tokens")[0], compiler_options=PLAIN)
    blind = tokens(params | {"positions": np.zeros_like(params["positions"])}, both)
    np.testing.assert_allclose(*blind.summary, atol=1e-5)
    np.testing.assert_allclose(*blind.registers, atol=1e-5)
    assert np.ptp(tokens(params, both).summary, axis=0).max() > 1e-3


def test_layers_and_the_scan_give_the_same_tokens(params):
    def seen(params, x):
        unrolled = apply(params, x, (0, -1), method="tokens")
        return apply(params, x).pooled, unrolled, apply(params, x, (1,), method="tokens", scan=True)

    pooled, (first, last), (scanned,) = jax.jit(seen, compiler_options=PLAIN)(params, images(2, 4, 8))
    assert first.patches.shape == (2, 8, 8) and first.registers.shape == (2, 2, 8)
    np.testing.assert_array_equal(pooled, last.summary)
    assert np.abs(first.patches - last.patches).max() > 1e-2
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5), last, scanned)


def test_the_table_of_places_is_stretched(params):
    by_row = np.repeat(np.arange(4.0, dtype=np.float32), 4)[:, None] + np.zeros(8, np.float32)  # [16, D]
    table = params | {"positions": np.concatenate([params["positions"][:1], by_row])}
    for antialias in (True, False):
        places = apply(table, 3, 7, method="places", antialias=antialias)
        np.testing.assert_array_equal(places[0], params["positions"][0])  # the class token's: not of the grid
        grid = places[1:].reshape(3, 7, 8)
        np.testing.assert_allclose(grid, np.broadcast_to(grid[:, :1], grid.shape), atol=1e-6)
        assert (np.diff(grid[:, 0, 0]) > 0.5).all()
    closer = apply(table, 3, 7, method="places", antialias=False, offset=0.1)[1:].reshape(3, 7, 8)
    assert np.ptp(closer) < np.ptp(grid)
    np.testing.assert_array_equal(apply(params, 4, 4, method="places", offset=0.1), params["positions"])


def test_preprocessing_is_imagenets():
    assert tuple(TINY.PREPROCESSING) == ("pil-bicubic", "edm2", "clean")
    seen = TINY.PREPROCESSING["edm2"](jnp.full((1, 4, 4, 3), 255, jnp.uint8))
    np.testing.assert_allclose(seen[0, 0, 0], (255 - np.asarray(MEAN)) / np.asarray(DEVIATION), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(MEAN) / 255, (0.485, 0.456, 0.406), rtol=1e-9)
    np.testing.assert_allclose(np.asarray(DEVIATION) / 255, (0.229, 0.224, 0.225), rtol=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlp": "relu"}, "there is no perceptron 'relu'"),
        ({"table_size": 7}, "table_size=7 does not divide into patches of side 2"),
        ({"offset": -0.1}, "from 0 to below 1"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(params, fields, message):
    with pytest.raises(ValueError, match=message):
        apply(params, 4, 4, method="places", **fields)


def test_inputs_that_do_not_fit_are_refused(params):
    with pytest.raises(ValueError, match="sides are multiples of 2"):
        apply(params, images(1, 4, 5))
    for layer in (2, -3):
        with pytest.raises(ValueError, match="there are 2 blocks"):
            apply(params, images(1, 4, 4), (layer,), method="tokens")
    odd = jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 5, 5, 3)))["params"]
    assert jax.tree.map(jnp.shape, odd) == jax.tree.map(jnp.shape, params)  # parameters fit images of any side

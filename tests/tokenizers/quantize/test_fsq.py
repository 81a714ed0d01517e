"""Finite scalar quantization: closed forms of its bound, levels and ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.tokenizers.quantize.fsq import FSQ


def test_ids_and_codes_go_both_ways():
    quantizer = FSQ((4, 3, 5))
    codes = quantizer.apply({}, method="codebook")
    assert (quantizer.codes, quantizer.channels) == (60, 3) and codes.shape == (60, 3)
    assert len(np.unique(codes, axis=0)) == 60
    # features whose bound lies on the codes: the inverse of the bound, just inside of the outermost levels
    half = np.asarray([2, 1, 2])
    levels = np.asarray([4, 3, 5])
    reach, offset = (levels - 1) * (1 - 1e-3) / 2, np.asarray([0.5, 0, 0])
    inside = np.clip((codes * half + offset) / reach, -0.999, 0.999)
    z = np.arctanh(inside) - np.tan(offset / reach)
    out = quantizer.apply({}, z[None].astype(np.float32))
    np.testing.assert_array_equal(out.ids[0], np.arange(60))
    np.testing.assert_allclose(out.values[0], codes, atol=1e-6)


def test_levels_of_odd_and_even_channels():
    quantizer = FSQ((4, 5))
    z = np.linspace(-9, 9, 400, dtype=np.float32)[None, :, None].repeat(2, -1)
    values = np.asarray(quantizer.apply({}, z).values)[0]
    np.testing.assert_allclose(np.unique(values[:, 0].round(4)), [-1, -0.5, 0, 0.5])
    np.testing.assert_allclose(np.unique(values[:, 1].round(4)), [-1, -0.5, 0, 0.5, 1])
    bound = np.asarray(quantizer.apply({}, jnp.asarray([[[40.0, 40.0]], [[-40.0, -40.0]]]), method="bound"))
    np.testing.assert_allclose(
        bound[:, 0], [[1.5 * 0.999 - 0.5, 2 * 0.999], [-1.5 * 0.999 - 0.5, -2 * 0.999]], rtol=1e-5
    )


def test_the_first_channel_is_the_fastest_digit():
    quantizer = FSQ((8, 5))
    values = quantizer.apply({}, jnp.asarray([0, 1, 8]), method="look_up")
    np.testing.assert_allclose(values, [[-1, -1], [-0.75, -1], [-1, -0.5]])


def test_the_gradient_is_that_of_the_bound():
    quantizer, z = FSQ((4, 5)), np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    through = jax.grad(lambda z: quantizer.apply({}, z).values.sum())(z)
    bound = jax.grad(lambda z: jnp.sum(quantizer.apply({}, z, method="bound") / jnp.asarray([2.0, 2.0])))(z)
    np.testing.assert_allclose(through, bound, rtol=1e-6)


@pytest.mark.parametrize("levels", [(), (8, 1), (2,) * 31])
def test_levels_that_make_no_ids_are_refused(levels):
    with pytest.raises(ValueError, match="levels="):
        FSQ(levels).apply({}, jnp.zeros((1, 1, max(len(levels), 1))))

"""Quantizers of one bit per channel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.tokenizers.quantize.lfq import BSQ, LFQ


def features(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("quantizer", "size"), [(LFQ(5), 1.0), (BSQ(5, groups=5), 5**-0.5)])
def test_ids_are_the_bits_of_the_signs(quantizer, size):
    z = features((2, 3, 5))
    out = quantizer.apply({}, z)
    np.testing.assert_array_equal(out.ids, ((z > 0) * [1, 2, 4, 8, 16]).sum(-1))
    np.testing.assert_allclose(out.values, np.where(z > 0, size, -size), atol=1e-6)
    np.testing.assert_allclose(quantizer.apply({}, out.ids, method="look_up"), out.values, atol=1e-6)
    codes = quantizer.apply({}, method="codebook")
    assert quantizer.codes == 32 and codes.shape == (32, 5) and len(np.unique(codes, axis=0)) == 32
    np.testing.assert_array_equal(quantizer.apply({}, codes[None]).ids[0], np.arange(32))
    np.testing.assert_array_equal(quantizer.apply({}, jnp.zeros((1, 1, 5))).ids, 0)


def test_the_spherical_code_is_the_nearest_of_all():
    quantizer, z = BSQ(4, groups=4, commitment=1.0), features((3, 6, 4))
    out, codes = quantizer.apply({}, z), np.asarray(quantizer.apply({}, method="codebook"))
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    far = np.square(unit[..., None, :] - codes).sum(-1)  # [B, P, V]
    np.testing.assert_array_equal(out.ids, far.argmin(-1))
    np.testing.assert_allclose(out.losses["commitment"], far.min(-1).mean(-1) / 4, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(out.values, axis=-1), 1, atol=1e-6)


def entropy(p):
    return -np.sum(p * np.log(p + 1e-30), axis=-1)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_entropy_loss_is_that_of_all_codes(groups):
    """Of features entropies add up over channels; of their mean they do where channels are independent."""
    z = np.asarray(list(itertools.product([-0.3, 0.7], repeat=4)), np.float32)[None]  # independent channels
    quantizer = LFQ(4, entropy=2.0, diversity=0.5, entropy_temperature=1.5, groups=groups)
    codes = np.asarray(quantizer.apply({}, method="codebook"))
    logits = -np.square(z[0][:, None] - codes).sum(-1) / 1.5  # [N, V]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 2.0 * (entropy(p).mean() - 0.5 * entropy(p.mean(0)))
    np.testing.assert_allclose(quantizer.apply({}, z).losses["entropy"], expected, atol=1e-3)


def test_spherical_probabilities_are_of_the_inner_product():
    z, quantizer = features((1, 7, 3)), BSQ(3, groups=1, entropy=1.0, entropy_temperature=0.2)
    codes = np.asarray(quantizer.apply({}, method="codebook"))
    logits = (z[0] / np.linalg.norm(z[0], axis=-1, keepdims=True)) @ codes.T / 0.2
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = entropy(p).mean() - entropy(p.mean(0))
    np.testing.assert_allclose(quantizer.apply({}, z).losses["entropy"], expected, atol=1e-3)


def test_gradients_pass_straight_through():
    z, g = features((2, 3, 4)), features((2, 3, 4), 1)
    back = jax.grad(lambda z: jnp.sum(g * LFQ(4).apply({}, z).values))(z)
    np.testing.assert_array_equal(back, g)


@pytest.mark.parametrize("quantizer", [LFQ(31), BSQ(0), LFQ(10, groups=3), BSQ(6, groups=0)])
def test_impossible_bits_and_groups_are_refused(quantizer):
    with pytest.raises(ValueError, match="channels"):
        quantizer.apply({}, jnp.zeros((1, 1, quantizer.channels)))

"""Residual quantization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.tokenizers.quantize.residual import ResidualVQ


def features(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shared", [False, True])
def test_every_level_takes_the_code_nearest_to_what_is_left(shared):
    z, codes = features((2, 3, 2)), features((8, 2) if shared else (3, 8, 2), 1)
    quantizer = ResidualVQ(8, 2, levels=3, shared=shared)
    variables = {"params": {"codebook": codes}}
    out = quantizer.apply(variables, z)
    assert out.ids.shape == (2, 9)
    left = z.copy()
    for level in range(3):
        book = codes if shared else codes[level]
        ids = np.square(left[..., None, :] - book).sum(-1).argmin(-1)  # [B, P]
        np.testing.assert_array_equal(out.ids.reshape(2, 3, 3)[:, :, level], ids)
        left = left - book[ids]
    np.testing.assert_allclose(out.values, z - left, atol=1e-5)
    np.testing.assert_allclose(quantizer.apply(variables, out.ids, method="look_up"), out.values, atol=1e-5)


def test_the_error_falls_with_levels():
    z = features((4, 64, 2))
    codes = np.concatenate([np.zeros((1, 2)), features((31, 2), 1)]).astype(np.float32)  # zero may always be added
    errors = []
    for levels in (1, 2, 4, 8):
        out = ResidualVQ(32, 2, levels=levels).apply({"params": {"codebook": codes}}, z)
        errors.append(float(np.square(out.values - z).mean()))
    assert all(later < 0.8 * earlier for earlier, later in zip(errors, errors[1:], strict=False))


def test_losses_are_means_over_partial_sums_and_train_the_level_itself():
    z, codes = features((2, 3, 2)), features((2, 8, 2), 1)
    quantizer = ResidualVQ(8, 2, levels=2, shared=False, commitment=0.5)
    out = quantizer.apply({"params": {"codebook": codes}}, z)
    first, second = out.ids.reshape(2, 3, 2)[..., 0], out.ids.reshape(2, 3, 2)[..., 1]
    sums = [codes[0][first], codes[0][first] + codes[1][second]]
    squares = np.mean([np.square(x - z).mean((1, 2)) for x in sums], axis=0)
    np.testing.assert_allclose(out.losses["commitment"], 0.5 * squares, rtol=1e-5)
    np.testing.assert_allclose(out.losses["codebook"], squares, rtol=1e-5)

    def loss(codes):
        return quantizer.apply({"params": {"codebook": codes}}, z).losses["codebook"].sum()

    expected = np.zeros_like(codes)  # of d sum / d code, each level's sum to its own code only
    for level, (ids, total) in enumerate(zip((first, second), sums, strict=True)):
        np.add.at(expected[level], np.asarray(ids), 2 * (total - z) / 6 / 2)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(codes)), expected, atol=1e-6)


def test_the_gradient_passes_straight_through():
    z, g, quantizer = features((1, 3, 2)), features((1, 3, 2), 1), ResidualVQ(4, 2, levels=2)
    variables = quantizer.init(jax.random.key(0), z)
    back = jax.grad(lambda z: jnp.sum(g * quantizer.apply(variables, z).values))(z)
    np.testing.assert_array_equal(back, g)

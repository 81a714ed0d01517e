"""The KL autoencoder; its numbers are held against published code by the golden cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.contracts import Latents
from maskdit.draw import Draw
from maskdit.layers.conv import Conv, GroupNorm
from maskdit.tokenizers.posterior import LOGVAR_RANGE
from maskdit.tokenizers.vae import VAE

TINY = VAE(channels=(4, 8), layers_per_block=1, latent_channels=3, groups=2, scale=0.5, shift=0.25)


@pytest.fixture(scope="module")
def tiny():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 8, 6, 3)).astype(np.float32)
    shapes = jax.eval_shape(TINY.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), meta.unbox(shapes))
    return {"params": params}, images


@functools.partial(jax.jit, static_argnames="vae", compiler_options={"xla_backend_optimization_level": 0})
def encode(variables, images, vae=TINY, draw=None):
    return vae.apply(variables, images, draw=draw, method="encode")


@functools.partial(jax.jit, static_argnames="vae", compiler_options={"xla_backend_optimization_level": 0})
def decode(variables, latents, vae=TINY):
    return vae.apply(variables, latents, method="decode")


def test_shapes_and_spec(tiny):
    variables, images = tiny
    latents = encode(variables, images)
    assert latents.values.shape == (2, 4, 3, 3) and latents.ids is None
    assert latents.aux["moments"].shape == (2, 4, 3, 6) and latents.aux["kl"].shape == (2,)
    assert decode(variables, latents).shape == images.shape
    spec = TINY.latent
    assert (spec.layout, spec.downsample, spec.channels, spec.scale, spec.shift) == ("grid", 2, 3, 0.5, 0.25)
    assert VAE().latent.downsample == 8


def test_a_draw_samples_the_posterior_and_without_one_it_is_the_mean(tiny):
    variables, images = tiny
    at_mean, drawn = encode(variables, images), encode(variables, images, draw=Draw(3))
    mean, logvar = jnp.split(at_mean.aux["moments"], 2, axis=-1)
    noise = Draw(3).normal("posterior", mean.shape)
    np.testing.assert_allclose(at_mean.values, (mean - 0.25) * 0.5, atol=1e-6)
    np.testing.assert_allclose(drawn.values, (mean + jnp.exp(logvar / 2) * noise - 0.25) * 0.5, atol=1e-6)
    never = encode(variables, images, vae=TINY.clone(sample=False), draw=Draw(3))
    np.testing.assert_array_equal(never.values, at_mean.values)


def test_posterior_clamps_the_log_variance_only():
    """KL of a standard normal is 0; huge log variances are clamped in samples and KL, and kept in the moments."""
    standard = TINY.posterior(jnp.zeros((1, 2, 2, 6)))
    np.testing.assert_array_equal(standard.aux["kl"], 0.0)
    moments = jnp.concatenate([jnp.zeros((1, 1, 1, 3)), jnp.full((1, 1, 1, 3), 100.0)], axis=-1)
    wild = TINY.posterior(moments)
    low, high = LOGVAR_RANGE
    np.testing.assert_allclose(wild.aux["kl"], 3 * 0.5 * (np.exp(high) - 1 - high), rtol=1e-6)
    np.testing.assert_array_equal(wild.aux["moments"], moments)
    assert low == -30.0


def test_decode_undoes_scale_and_shift(tiny):
    variables, _ = tiny
    z = np.random.default_rng(2).standard_normal((2, 4, 3, 3)).astype(np.float32)
    plain = TINY.clone(scale=1.0, shift=0.0)
    ours = decode(variables, Latents(values=(z - 0.25) * 0.5))
    np.testing.assert_allclose(ours, decode(variables, Latents(values=z), vae=plain), atol=1e-5)


def test_bfloat16_compute_keeps_float32_parameters_and_outputs(tiny):
    variables, images = tiny
    half = TINY.clone(dtype="bfloat16")
    latents = encode(variables, images, vae=half)
    decoded = decode(variables, latents, vae=half)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert latents.values.dtype == latents.aux["kl"].dtype == decoded.dtype == jnp.float32
    np.testing.assert_allclose(latents.values, encode(variables, images).values, atol=0.05)


def test_stride_two_pads_right_and_bottom_only():
    """With a kernel that copies its first entry, position (i, j) of the result is pixel (2i, 2j): nothing before it."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 6, 1))
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)
    conv = Conv(1, stride=2, padding=(0, 1), use_bias=False)
    np.testing.assert_array_equal(conv.apply({"params": {"kernel": kernel}}, x), x[:, ::2, ::2])


def test_group_norm_normalises_each_group_of_neighbours():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 6)) * 3 + 1000.0
    y, _ = GroupNorm(groups=2).init_with_output(jax.random.key(1), x)
    for group in (y[..., :3], y[..., 3:]):
        np.testing.assert_allclose(group.mean((1, 2, 3)), 0.0, atol=1e-4)
        np.testing.assert_allclose(group.var((1, 2, 3)), 1.0, atol=1e-3)
    faint = 1e-3 * jnp.tile(jnp.asarray([1.0, -1.0]), 9).reshape(1, 3, 6, 1)  # variance 1e-6, as the published epsilon
    y, _ = GroupNorm(groups=1).init_with_output(jax.random.key(1), faint)
    np.testing.assert_allclose(y, faint * 1e3 / 2**0.5, rtol=1e-4)
    with pytest.raises(ValueError, match="6 channels do not divide into groups=4"):
        GroupNorm(groups=4).init(jax.random.key(0), x)

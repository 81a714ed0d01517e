"""The VQGANs and what they share; their numbers are held against published code by the golden cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.contracts import Latents
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.multiscale import MultiScaleVQ
from maskdit.tokenizers.quantize.residual import ResidualVQ
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.vae import VAE
from maskdit.tokenizers.vqgan import VQGAN

SMALL = {"channels": (4, 8), "layers_per_block": 1, "latent_channels": 4, "groups": 2, "attention_levels": (1,)}
PLAIN = VQGAN(quantize=VQ(codes=11, channels=3, l2=True), **SMALL)
MASKGIT = MaskGITVQGAN(quantize=VQ(codes=11, channels=3), channels=(4, 8), blocks=1, latent_channels=3, groups=2)
PYRAMID = VQGAN(quantize=MultiScaleVQ(codes=11, channels=3, scales=(1, 2, 4), phis=2), **SMALL)


def images(height, width, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


@functools.cache
def made(tokenizer, size=8):
    """Random parameters."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(tokenizer.init, jax.random.key(0), images(size, size))["params"]
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), meta.unbox(shapes))


@functools.partial(
    jax.jit, static_argnames=("tokenizer", "method"), compiler_options={"xla_backend_optimization_level": 0}
)
def call(tokenizer, params, x, method):
    return tokenizer.apply({"params": params}, x, method=method)


@pytest.mark.parametrize(
    ("tokenizer", "size"),
    [(PLAIN, (8, 6)), (MASKGIT, (6, 8)), (PYRAMID, (8, 8))],
)
def test_ids_decode_to_what_values_do(tokenizer, size):
    params = made(tokenizer)
    latents = call(tokenizer, params, images(*size), "encode")
    spec, (h, w) = tokenizer.latent, (side // 2 for side in size)
    assert latents.ids.dtype == jnp.int32 and latents.values.shape == (2, h, w, spec.channels)
    assert len(np.unique(latents.ids)) > 1 and latents.ids.min() >= 0 and latents.ids.max() < spec.vocabulary
    ids = latents.ids if spec.layout == "pyramid" or h == w else latents.ids.reshape(2, h, w)
    expected = call(tokenizer, params, Latents(values=latents.values), "decode")
    assert expected.shape == (2, *size, 3)
    np.testing.assert_allclose(call(tokenizer, params, Latents(ids=ids), "decode"), expected, atol=1e-5)


def test_several_codes_of_a_position_have_an_axis():
    tokenizer = VQGAN(quantize=ResidualVQ(codes=7, channels=3, levels=2), **SMALL)
    params = made(tokenizer)
    latents = call(tokenizer, params, images(8, 6), "encode")
    assert latents.ids.shape == (2, 4 * 3 * 2)
    expected = call(tokenizer, params, latents, "decode")
    decoded = call(tokenizer, params, Latents(ids=latents.ids.reshape(2, 4, 3, 2)), "decode")
    np.testing.assert_allclose(decoded, expected, atol=1e-5)


def test_ids_beyond_sixteen_bits():
    codes, code = 2**16 + 3, 2**16 + 1
    tokenizer = PLAIN.clone(quantize=VQ(codes=codes, channels=3))
    params = dict(made(PLAIN))
    codebook = np.full((codes, 3), 1e3, np.float32)
    codebook[code] = 0.1
    params["quantize"] = {"codebook": codebook}
    latents = call(tokenizer, params, images(8, 8), "encode")
    np.testing.assert_array_equal(latents.ids, code)
    np.testing.assert_allclose(latents.values, 0.1, atol=1e-6)
    expected = call(tokenizer, params, Latents(values=jnp.full((2, 4, 4, 3), 0.1)), "decode")
    np.testing.assert_allclose(call(tokenizer, params, Latents(ids=latents.ids), "decode"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (Latents(ids=jnp.zeros((2, 12), jnp.int32)), r"\(2, 12\) are of 12 positions, which fill no grid of 3 x 3"),
        (Latents(), "neither values nor ids"),
    ],
)
@pytest.mark.parametrize("tokenizer", [PLAIN, MASKGIT])
def test_latents_that_cannot_be_decoded(tokenizer, latents, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.apply({"params": made(tokenizer)}, latents, method="decode")


@pytest.mark.parametrize("tokenizer", [PLAIN, MASKGIT, VAE(**SMALL), VAE(**SMALL, quant_conv=False)])
def test_nothing_but_a_bias_comes_after_the_last_layers(tokenizer):
    params = jax.tree.map(np.copy, made(tokenizer))
    for path in (tokenizer.last_layer, tokenizer.encoder_last_layer):
        functools.reduce(lambda node, key: node[key], path.split("/"), params)[...] = 0
    latents = call(tokenizer, params, images(8, 8), "encode")
    flat = np.asarray(latents.values)
    np.testing.assert_allclose(flat, np.broadcast_to(flat[:1, :1, :1], flat.shape), atol=1e-6)
    decoded = np.asarray(call(tokenizer, params, call(tokenizer, made(tokenizer), images(8, 8), "encode"), "decode"))
    np.testing.assert_allclose(decoded, np.broadcast_to(decoded[:1, :1, :1], decoded.shape), atol=1e-6)


def test_widths_of_the_sides_may_differ():
    tokenizer = PLAIN.clone(decoder_channels=(2, 6))
    params = made(tokenizer)
    assert params["encoder"]["conv_in"]["kernel"].shape[-1] == 4
    assert params["decoder"]["conv_in"]["kernel"].shape[-1] == 6
    assert call(tokenizer, params, images(8, 8), "__call__").shape == (2, 8, 8, 3)
    with pytest.raises(ValueError, match="2 and 1 levels"):
        PLAIN.clone(decoder_channels=(4,)).init(jax.random.key(0), images(8, 8))
    with pytest.raises(ValueError, match="has 3 channels, the latents 5"):
        MASKGIT.clone(latent_channels=5).init(jax.random.key(0), images(8, 8))


def test_a_pyramid_takes_images_of_one_size():
    latent = PYRAMID.latent
    assert (latent.layout, latent.tokens, latent.size, latent.vocabulary) == ("pyramid", 1 + 4 + 16, 8, 11)
    with pytest.raises(ValueError, match="the last scale is 4 positions a side"):
        PYRAMID.apply({"params": made(PYRAMID)}, images(16, 16), method="encode")


@pytest.mark.parametrize("tokenizer", [PLAIN, MASKGIT])
def test_bfloat16_compute_keeps_codes_and_images_in_float32(tokenizer):
    params, half = made(tokenizer), tokenizer.clone(dtype="bfloat16")
    latents = call(half, params, images(8, 8), "encode")
    decoded = call(half, params, latents, "decode")
    assert latents.values.dtype == latents.aux["z"].dtype == decoded.dtype == jnp.float32
    np.testing.assert_allclose(decoded, call(tokenizer, params, latents, "decode"), atol=0.3)


def test_the_maskgit_network_sees_images_between_zero_and_one():
    """Its first convolution without bias gives nothing for black, -1 outside; its last bias of 1 gives white, 1."""
    params = jax.tree.map(np.zeros_like, made(MASKGIT))
    params["decoder"]["conv_out"]["bias"] = np.ones(3, np.float32)
    decoded = call(MASKGIT, params, Latents(values=jnp.zeros((1, 2, 2, 3))), "decode")
    np.testing.assert_array_equal(decoded, 1.0)
    black, latents = np.full((1, 4, 4, 3), -1, np.float32), []
    for scale in (1.0, 5.0):
        other = jax.tree.map(np.copy, made(MASKGIT))
        other["encoder"]["conv_in"]["kernel"] *= scale
        latents.append(call(MASKGIT, other, black, "encode").aux["z"])
    np.testing.assert_array_equal(*latents)

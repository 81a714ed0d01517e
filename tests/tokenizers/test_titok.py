"""TiTok and TA-TiTok; their numbers are held against published code by the golden cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.contracts import Cond, Latents
from maskdit.draw import Draw
from maskdit.tasks.proxy import ProxyCodes, proxy_cross_entropy
from maskdit.tokenizers.latent_vit import mix
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.titok import TiTok

PLAIN = {"xla_backend_optimization_level": 0}
SHARED = {"size": 8, "patch": 4, "tokens": 3, "channels": 5, "encoder": (8, 1, 2), "decoder": (8, 2, 2)}
CODES = TiTok(quantize=VQ(codes=7, channels=5), **SHARED)
KL = TiTok(scale=0.5, shift=0.25, text=(2, 6), **SHARED)
PROXY = MaskGITVQGAN(
    VQ(codes=9, channels=4), channels=(2, 2, 2), blocks=1, middle_blocks=1, latent_channels=4, groups=1
)
FIRST = TiTok(quantize=VQ(codes=7, channels=5, l2=True), legacy=True, proxy_codes=9, **SHARED)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
IDS = Latents(ids=jnp.zeros((2, 3), jnp.int32))
TEXT = Cond(text=np.random.default_rng(2).normal(size=(2, 2, 6)).astype(np.float32))


def filled(module, *inputs):
    shapes = jax.eval_shape(lambda key: module.init(key, *inputs), jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    return {"params": jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), meta.unbox(shapes))}


@functools.partial(jax.jit, static_argnums=(0, 2), compiler_options=PLAIN)
def call(module, variables, method, *inputs, draw=None):
    return module.apply(variables, *inputs, method=method, **({} if draw is None else {"draw": draw}))


def dead(gradient):
    return [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradient) if not np.abs(g).max() > 0]


def test_latents_are_a_sequence_and_ids_decode_as_their_values():
    variables = filled(CODES, IMAGES)
    latents = call(CODES, variables, "encode", IMAGES)
    assert latents.values.shape == (2, 3, 5) and latents.ids.shape == (2, 3) and latents.ids.dtype == jnp.int32
    spec = CODES.latent
    assert (spec.layout, spec.tokens, spec.channels, spec.vocabulary, spec.size) == ("sequence", 3, 5, 7, 8)
    codebook = call(CODES, variables, "codebook")
    np.testing.assert_allclose(latents.values, codebook[latents.ids], atol=1e-6)
    decoded = call(CODES, variables, "decode", latents)
    assert decoded.shape == IMAGES.shape and decoded.dtype == jnp.float32
    np.testing.assert_allclose(call(CODES, variables, "decode", Latents(ids=latents.ids)), decoded, atol=1e-5)


def test_gradient_reaches_every_parameter_through_the_codes():
    variables = filled(CODES, IMAGES)

    def loss(variables):
        latents = CODES.apply(variables, IMAGES, method="encode")
        decoded = CODES.apply(variables, latents, method="decode")
        return jnp.square(decoded - IMAGES).mean() + latents.losses["codebook"].mean()

    gradient = jax.jit(jax.grad(loss), compiler_options=PLAIN)(variables)
    assert dead(gradient) == []


def test_images_are_coded_in_the_unit_range():
    """A decoder whose last bias is 1 and all else 0 paints white: 1 in [-1, 1]."""
    zeros = jax.tree.map(jnp.zeros_like, filled(CODES, IMAGES))
    zeros["params"]["decoder"]["conv_out"]["bias"] += 1.0
    white = call(CODES, zeros, "decode", Latents(values=jnp.zeros((1, 3, 5))))
    np.testing.assert_array_equal(white, jnp.ones((1, 8, 8, 3)))
    variables = filled(CODES, IMAGES)
    black = call(CODES, variables, "features", jnp.full((1, 8, 8, 3), -1.0))
    variables["params"]["encoder"]["patch_embed"]["kernel"] *= 0  # black is zero: the kernel does not matter
    np.testing.assert_array_equal(call(CODES, variables, "features", IMAGES[:1]), black)


def test_mixed_tokens_are_read_in_another_order():
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(mix(jnp.asarray(x))[1, 2], x[1].reshape(-1)[[2, 5, 8, 11]])


def test_text_moves_the_decoder_alone():
    variables = filled(KL, IMAGES)  # without a text: shapes need none
    latents = call(KL, variables, "encode", IMAGES, TEXT)
    np.testing.assert_array_equal(latents.values, call(KL, variables, "encode", IMAGES).values)
    other = Cond(text=TEXT.text + np.asarray([1, 0], np.float32)[:, None, None])
    images = [call(KL, variables, "decode", latents, cond) for cond in (TEXT, other)]
    moved = jnp.abs(images[0] - images[1]).max(axis=(1, 2, 3))
    assert moved[0] > 1e-3 and moved[1] == 0
    with pytest.raises(ValueError, match=r"text embeddings \[B, 2, 6\], got none: give cond.text"):
        call(KL, variables, "decode", latents)
    with pytest.raises(ValueError, match=r"got \[2, 1, 6\]"):
        call(KL, variables, "decode", latents, Cond(text=TEXT.text[:, :1]))
    with pytest.raises(ValueError, match="reads no text"):
        call(CODES, filled(CODES, IMAGES), "decode", IDS, TEXT)


def test_moments_make_the_latents_again_and_decode_undoes_the_scale():
    variables = filled(KL, IMAGES)
    latents = call(KL, variables, "encode", IMAGES, draw=Draw(3))
    assert KL.latent.vocabulary is None and latents.aux["moments"].shape == (2, 3, 10)
    again = KL.posterior(latents.aux["moments"], draw=Draw(3))
    np.testing.assert_allclose(again.values, latents.values, atol=1e-6)
    mean, logvar = jnp.split(latents.aux["moments"], 2, axis=-1)
    np.testing.assert_allclose(call(KL, variables, "encode", IMAGES).values, (mean - 0.25) * 0.5, atol=1e-6)
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum((1, 2))
    np.testing.assert_allclose(latents.aux["kl"], kl, rtol=1e-5)
    plain, raw = KL.clone(scale=1.0, shift=0.0), Latents(values=latents.values / 0.5 + 0.25)
    raw = call(plain, variables, "decode", raw, TEXT)
    np.testing.assert_allclose(call(KL, variables, "decode", latents, TEXT), raw, atol=1e-5)


def test_first_stage_learns_proxy_codes_and_a_second_stage_paints_them():
    variables, proxy = filled(FIRST, IMAGES), filled(PROXY, IMAGES)
    part = ProxyCodes(PROXY)
    targets = jax.jit(part.ids, compiler_options=PLAIN)(proxy, IMAGES)
    assert targets.shape == (2, 2, 2)

    def loss(variables):
        latents = FIRST.apply(variables, IMAGES, method="encode")
        logits = FIRST.apply(variables, latents, method="logits")
        return (proxy_cross_entropy(logits, targets) + latents.losses["codebook"]).mean()

    gradient = jax.jit(jax.grad(loss), compiler_options=PLAIN)(variables)
    assert dead(gradient) == []
    logits = call(FIRST, variables, "__call__", IMAGES)  # a first stage has no images to give
    assert logits.shape == (2, 2, 2, 9)
    with pytest.raises(ValueError, match="call logits, or set pixel"):
        call(FIRST, variables, "decode", IDS)

    whole, params = part.completed(FIRST, variables["params"], proxy)
    assert params["pixel"].keys() == {"decoder", "quantize"}  # its encoder is not needed any more
    code = jax.nn.softmax(logits) @ proxy["params"]["quantize"]["codebook"]
    painted = call(PROXY, proxy, "decode", Latents(values=code))
    np.testing.assert_allclose(call(whole, {"params": params}, "__call__", IMAGES), painted, atol=1e-5)


def test_paths_of_last_layers_are_there():
    whole = FIRST.clone(pixel=PROXY)
    for module in (CODES, KL, FIRST, whole):
        tree = filled(module, IMAGES)["params"]
        for path in (module.last_layer, module.encoder_last_layer):
            leaf = tree
            for name in path.split("/"):
                leaf = leaf[name]
    assert [module.last_layer for module in (CODES, FIRST, whole)] == [
        "decoder/conv_out/kernel",
        "decoder/ffn_out/kernel",
        "pixel/decoder/conv_out/kernel",
    ]


def test_scanned_blocks_and_half_precision_give_the_same():
    variables = filled(KL, IMAGES)
    plain, scanned, half = (
        call(KL.clone(**fields), variables, "__call__", IMAGES, TEXT)
        for fields in ({}, {"scan": True, "remat": "dots"}, {"dtype": "bfloat16"})
    )
    np.testing.assert_allclose(scanned, plain, atol=1e-5)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, plain, atol=0.1)


@pytest.mark.parametrize(
    ("module", "fields", "message"),
    [
        (CODES, {"channels": 4}, "quantizer has 5 channels, the tokens 4"),
        (CODES, {"scale": 2.0}, "leave them out with a quantizer"),
        (CODES, {"pixel": PROXY}, "set legacy=True"),
        (FIRST, {"pixel": PROXY, "proxy_codes": 8}, "pixel has 9 codes, .* proxy_codes=8"),
        (KL, {"patch": 3}, "size=8 does not divide into patches of side 3"),
        (KL, {"decoder_patch": 5}, "size=8 does not divide into patches of side 5"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(module, fields, message):
    with pytest.raises(ValueError, match=message):
        module.clone(**fields).init(jax.random.key(0), IMAGES)


def test_what_it_cannot_take_is_refused():
    variables = filled(KL, IMAGES)
    with pytest.raises(ValueError, match=r"takes images \[B, 8, 8, 3\], got \[2, 4, 8, 3\]"):
        call(KL, variables, "encode", IMAGES[:, :4])
    with pytest.raises(ValueError, match="neither values nor ids"):
        call(KL, variables, "decode", Latents(), TEXT)
    with pytest.raises(ValueError, match="this tokenizer has no codes"):
        call(KL, variables, "decode", IDS, TEXT)
    with pytest.raises(ValueError, match="set quantize"):
        call(KL, variables, "codebook")
    with pytest.raises(ValueError, match="no posterior"):
        CODES.posterior(jnp.zeros((1, 3, 10)))
    with pytest.raises(ValueError, match="with legacy=True"):
        call(CODES, filled(CODES, IMAGES), "logits", IDS)

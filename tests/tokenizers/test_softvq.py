"""SoftVQ-VAE; its numbers are held against published code by a golden case."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.contracts import Latents
from maskdit.tokenizers.latent_vit import ViTBlock
from maskdit.tokenizers.quantize.softvq import SoftVQ
from maskdit.tokenizers.softvq import SoftVQVAE

PLAIN = {"xla_backend_optimization_level": 0}
TINY = SoftVQVAE(
    SoftVQ(codes=6, channels=5, codebooks=2),
    size=8,
    patch=4,
    decoder_patch=2,
    tokens=4,
    channels=5,
    encoder=(8, 1, 2),
    decoder=(12, 1, 2),
    scale=2.0,
    shift=0.5,
)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 2), compiler_options=PLAIN)
def call(module, variables, method, *inputs):
    return module.apply(variables, *inputs, method=method)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(TINY.init, jax.random.key(0), IMAGES)["params"]
    rng = np.random.default_rng(0)
    return {"params": jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), meta.unbox(shapes))}


def test_tokens_are_scaled_means_of_codes_that_sharpen_to_the_likeliest(variables):
    latents = call(TINY, variables, "encode", IMAGES)
    assert latents.values.shape == (2, 4, 5) and latents.ids is None and TINY.latent.vocabulary is None
    raw = latents.values / 2 + 0.5
    assert jnp.linalg.norm(raw, axis=-1).max() <= 1 + 1e-6  # a mean of vectors of length one
    sharp = TINY.clone(quantize=TINY.quantize.clone(tau=1e-6), scale=1.0, shift=0.0)
    codes = call(TINY, variables, "codebook")  # [books, codes, c]
    ids = latents.aux["ids"]
    assert TINY.code_count == 12 and set((ids // 6)[0].tolist()) == {0, 1}
    chosen = codes.reshape(12, 5)[ids]  # counted through both books
    np.testing.assert_allclose(call(sharp, variables, "encode", IMAGES).values, chosen, atol=1e-4)
    plain = call(sharp, variables, "decode", Latents(values=raw))
    np.testing.assert_allclose(call(TINY, variables, "decode", latents), plain, atol=1e-5)


def test_gradient_reaches_every_parameter(variables):
    def loss(variables):
        latents = TINY.apply(variables, IMAGES, train=True, method="encode")
        decoded = TINY.apply(variables, latents, method="decode")
        return jnp.square(decoded - IMAGES).mean() + latents.losses["entropy"]

    gradient = jax.jit(jax.grad(loss), compiler_options=PLAIN)(variables)
    leaves = jax.tree.leaves_with_path(gradient)
    assert [jax.tree_util.keystr(path) for path, g in leaves if not np.abs(g).max() > 0] == []
    tree = gradient["params"]
    assert tree["decoder"]["pixels"]["kernel"].shape == (12, 2 * 2 * 3) and "quant" in tree
    assert (TINY.last_layer, TINY.encoder_last_layer) == ("decoder/pixels/kernel", "quant/kernel")


def test_transformers_of_the_sides_may_differ():
    network = TINY.clone(layer_scale=(None, 1e-5), mlp_ratio=(2.0, 1.5), qkv_bias=(False, True), epsilon=(1e-6, 1e-3))
    params = meta.unbox(jax.eval_shape(network.init, jax.random.key(0), IMAGES)["params"])
    there, back = (params[side]["blocks_0"] for side in ("encoder", "decoder"))
    assert "scale1" not in there and back["scale2"].shape == (12,)
    assert (there["fc1"]["kernel"].shape, back["fc1"]["kernel"].shape) == ((8, 16), (12, 18))
    assert "bias" not in there["attn"]["qkv"] and "bias" in back["attn"]["qkv"] and "bias" in there["attn"]["proj"]


def test_branches_start_small():
    """At the start a block is nearly the identity."""
    x = jax.random.normal(jax.random.key(0), (1, 3, 8))
    moved = {}
    for scale in (1e-5, None):
        start = jax.jit(ViTBlock(heads=2, layer_scale=scale).init_with_output, compiler_options=PLAIN)
        (y, _), _ = start(jax.random.key(1), x)
        moved[scale] = jnp.abs(y - x).max()
    assert 0 < moved[1e-5] < 1e-4 and moved[None] > 1e-2


def test_what_it_cannot_take_is_refused(variables):
    with pytest.raises(ValueError, match=r"takes images \[B, 8, 8, 3\], got \[2, 4, 8, 3\]"):
        call(TINY, variables, "encode", IMAGES[:, :4])
    with pytest.raises(ValueError, match="soft codes are values"):
        call(TINY, variables, "decode", Latents(ids=jnp.zeros((2, 4), jnp.int32)))
    for fields, message in (
        ({"channels": 4}, "quantizer has 5 channels, the tokens 4"),
        ({"patch": 3}, "size=8 does not divide into patches of side 3"),
        ({"tokens": 3}, "3 tokens do not divide into codebooks=2"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(TINY.clone(**fields).init, jax.random.key(0), IMAGES)

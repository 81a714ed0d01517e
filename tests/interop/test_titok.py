"""Published files of TiTok, TA-TiTok and SoftVQ-VAE: variants, both ways, and every tensor at full size."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from maskdit.config import build
from maskdit.interop import layouts, published, softvq, titok
from maskdit.interop.rules import LayoutError, export_params, import_params
from maskdit.tokenizers.quantize.fsq import FSQ
from maskdit.tokenizers.vae import VAE

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def golden(name):
    """Published arguments, and names and shapes of the parameters, of a small network."""
    case = json.loads((GOLDENS / name / "case.json").read_text())
    return case["config"], {name: tuple(shape) for name, shape in case["parameters"].items()}


@functools.cache
def parameters(name):
    network = build(published.ALIASES[name].spec())
    shapes = layouts.parameter_shapes(network)
    return network, jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes)


def side_file(side, size, patch, grid, tokens):
    width, depth, _ = size
    shapes = {
        "class_embedding": (1, width),
        "positional_embedding": (grid**2 + 1, width),
        "latent_token_positional_embedding": (tokens, width),
    }
    norms = ["ln_pre", "ln_post", *(f"transformer.{i}.ln_{n}" for i in range(depth) for n in (1, 2))]
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (width,)
    for i in range(depth):
        block = f"transformer.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        products = {"attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
        for name, shape in products.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    return {f"{side}.{name}": shape for name, shape in shapes.items()}


def titok_file(encoder, decoder, *, size=256, patch=16, tokens, token_size, codes=None, proxies=None, text=None):
    """Names and shapes of a published file, but for the MaskGIT-VQGAN in the first version's."""
    grid, moments = size // patch, token_size * (1 if codes else 2)
    shapes = side_file("encoder", encoder, patch, grid, tokens) | side_file("decoder", decoder, patch, grid, tokens)
    products = {
        "encoder.patch_embed": (encoder[0], 3, patch, patch),
        "encoder.conv_out": (moments, encoder[0], 1, 1),
        "decoder.decoder_embed": (decoder[0], token_size),
    }
    if proxies:
        products["decoder.ffn.0"] = (2 * decoder[0], decoder[0], 1, 1)
        products["decoder.ffn.2"] = (proxies, 2 * decoder[0], 1, 1)
    else:
        products["decoder.ffn.0"] = (3 * patch**2, decoder[0], 1, 1)
        products["decoder.conv_out"] = (3, 3, 3, 3)
    if text:
        products["decoder.text_guidance_proj"] = (decoder[0], text[1])
        shapes["decoder.text_guidance_positional_embedding"] = (text[0], decoder[0])
    for name, shape in products.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    if codes:
        shapes["quantize.embedding.weight"] = (codes, token_size)
    return shapes | {"latent_tokens": (tokens, encoder[0]), "decoder.mask_token": (1, 1, decoder[0])}


def without_pixel(shapes):
    return {name: shape for name, shape in shapes.items() if not name.startswith("pixel_")}


SMALL, BASE, LARGE = (512, 8, 8), (768, 12, 12), (1024, 24, 16)
FULL = {
    "titok-s-128": (SMALL, SMALL, {"tokens": 128, "token_size": 12, "codes": 4096, "proxies": 1024}),
    "titok-sl-256-vq8k": (SMALL, LARGE, {"tokens": 256, "token_size": 64, "codes": 8192}),
    "titok-ll-32-vae": (LARGE, LARGE, {"tokens": 32, "token_size": 16}),
    "tatitok-bl-128-vq": (BASE, LARGE, {"tokens": 128, "token_size": 64, "codes": 8192, "text": (77, 768)}),
}


@pytest.mark.parametrize("name", FULL)
def test_every_tensor_of_the_published_file_is_covered(name):
    encoder, decoder, others = FULL[name]
    ours = {key: tensor.shape for key, tensor in layouts.write(*parameters(name)).items()}
    assert without_pixel(ours) == titok_file(encoder, decoder, **others)
    assert len(ours) - len(without_pixel(ours)) == (89 if name == "titok-s-128" else 0)


def test_the_rules_of_these_files_give_the_golden_cases():
    sides, small = ((48, 2, 3), (64, 3, 4)), {"size": 32, "patch": 8, "tokens": 8}
    for name, others in (
        ("titok-vq", {"token_size": 12, "codes": 64}),
        ("titok-vq-legacy", {"token_size": 12, "codes": 64, "patch": 16, "proxies": 48}),
        ("titok-vae", {"token_size": 6}),
        ("tatitok-vq", {"token_size": 6, "codes": 64, "text": (9, 20)}),
    ):
        assert titok_file(*sides, **{**small, **others}) == without_pixel(golden(name)[1])


def test_published_maskgit_decoder_lies_in_the_first_version():
    """Its parts at full size: 256 channels of 1024 codes, five levels."""
    pixel = parameters("titok-s-128")[1]["pixel"]
    assert pixel["quantize"]["codebook"].shape == (1024, 256)
    assert pixel["decoder"]["conv_in"]["kernel"].shape == (3, 3, 256, 512)
    assert pixel["decoder"]["conv_out"]["kernel"].shape == (3, 3, 128, 3)


def sides(config, encoder, decoder):
    """SoftVQ-VAE's arguments with others of its transformers."""
    given = (("encoder_vit", encoder), ("decoder_vit", decoder))
    return {**config, **{key: {**config[key], **fields} for key, fields in given}}


def changed(config, **model):
    return {**config, "vq_model": {**config["vq_model"], **model}}


VARIANTS = [
    (titok, golden("titok-vq")[0]),
    (titok, changed(golden("titok-vq")[0], vit_dec_patch_size=16, use_l2_norm=True)),
    (titok, golden("titok-vq-legacy")[0]),
    (titok, changed(golden("titok-vq-legacy")[0], finetune_decoder=False)),
    (titok, changed(golden("titok-vq-legacy")[0], quantize_mode="vae")),
    (titok, {**golden("titok-vae")[0], "latent_scale": 0.5, "latent_shift": 0.25}),
    (titok, golden("tatitok-vae")[0]),
    (titok, changed(golden("tatitok-vq")[0], clustering_vq=True)),
    (softvq, golden("softvq")[0]),
    (softvq, {**golden("softvq")[0], "dec_patch_size": 16, "num_codebooks": 2, "vq_mean": 0.25, "vq_std": 0.5}),
    (softvq, sides(golden("softvq")[0], {"mlp_ratio": 2.5, "layer_scale": False}, {"layer_norm_eps": 1e-5})),
    (softvq, sides(golden("softvq")[0], {"qkv_bias": False}, {"mlp_ratio": 3})),
]


@pytest.mark.parametrize(("interop", "config"), VARIANTS)
def test_a_network_tells_its_published_arguments_and_its_tensors_return(interop, config):
    network = build(interop.from_reference(config))
    again = interop.to_reference(network)
    assert build(interop.from_reference(again)) == network
    shapes, rng = layouts.parameter_shapes(network), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    state = export_params(interop.table(again), params)
    back = import_params(interop.table(config), state, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_what_no_image_needs_is_passed_over():
    config, _ = golden("softvq")
    shapes = layouts.parameter_shapes(build(softvq.from_reference(config)))
    state = export_params(softvq.table(config), jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    more = ("decoder.model.patch_embed.proj.weight", "quantize.codebook_used", "repa_model.norm.bias")
    import_params(softvq.table(config), state | {name: np.zeros(3, np.float32) for name in more}, shapes)
    config, _ = golden("tatitok-vq")
    shapes = layouts.parameter_shapes(build(titok.from_reference(config)))
    state = export_params(titok.table(config), jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    import_params(titok.table(config), state | {"quantize.embed_prob": np.zeros(64, np.float32)}, shapes)


@pytest.mark.parametrize(
    ("interop", "config", "message"),
    [
        (titok, changed(golden("titok-vq")[0], finetune_decoder=True), "finetune_decoder=True goes with is_legacy"),
        (titok, changed(golden("titok-vq")[0], quantize_mode="fsq"), "quantize_mode='fsq'"),
        (softvq, {**golden("softvq")[0], "use_rope": True}, "use_rope=True"),
        (softvq, {**golden("softvq")[0], "dec_cls_token": False}, "dec_cls_token=False"),
        (softvq, {**golden("softvq")[0], "base_image_size": 64}, "base_image_size=64"),
        (softvq, {**golden("softvq")[0], "encoder_vit": None, "encoder_model": "vit_tiny"}, "encoder_model='vit_tiny'"),
    ],
)
def test_other_architectures_are_refused(interop, config, message):
    with pytest.raises(LayoutError, match=message):
        interop.from_reference(config)


def test_what_the_published_model_does_not_have_is_refused():
    network = build(titok.from_reference(golden("titok-vq-legacy")[0]))
    fsq = FSQ(levels=(4, 4, 4))
    with pytest.raises(LayoutError, match="the quantizer FSQ"):
        titok.to_reference(network.clone(quantize=fsq, channels=3))
    with pytest.raises(LayoutError, match="codes of a VAE"):
        titok.to_reference(network.clone(pixel=VAE()))
    with pytest.raises(LayoutError, match="the quantizer FSQ"):
        softvq.to_reference(build(softvq.from_reference(golden("softvq")[0])).clone(quantize=fsq))

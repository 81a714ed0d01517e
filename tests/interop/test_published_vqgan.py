"""Every tensor of the published VQGANs at full size.

Names and shapes are told by rules that the golden cases hold at their small size.
"""

import re

import pytest

from maskdit.interop import layouts, published_vqgan
from tests.interop.test_published import compvis_file, diffusers_vae_file, golden, parameters

NAMES = [entry.name for entry in published_vqgan.ENTRIES]
F16 = (128, 128, 256, 256, 512)


def maskgit_file(channels, z, codes, blocks, middle, taming):
    """Names and shapes of MaskGIT's VQGAN, by the names of TiTok's repository or of taming-transformers."""
    shapes = {"quantize.embedding.weight": (codes, z)}

    def put(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def residual(name, before, after):
        put(f"{name}.norm1", before)
        put(f"{name}.conv1", after, before, 3, 3, bias=False)
        put(f"{name}.norm2", after)
        put(f"{name}.conv2", after, after, 3, 3, bias=False)
        if before != after:
            put(f"{name}.nin_shortcut", after, after, 1, 1, bias=False)

    deepest, upsample = channels[-1], "upsample.conv" if taming else "upsample_conv"
    levels = list(enumerate(channels))
    for side, way, order, width in (("encoder", "down", levels, channels[0]), ("decoder", "up", levels[::-1], deepest)):
        for i, after in order:
            for j in range(blocks):
                residual(f"{side}.{way}.{i}.block.{j}", width, after)
                width = after
            if side == "decoder" and i:
                put(f"{side}.{way}.{i}.{upsample}", width, width, 3, 3)
        for j in range(middle):
            residual(f"{side}.mid." + (f"block_{j + 1}" if taming else f"{j}"), deepest, deepest)
        put(f"{side}.norm_out", width)
    put("encoder.conv_in", channels[0], 3, 3, 3, bias=False)
    put("encoder.conv_out", z, deepest, 1, 1)
    put("decoder.conv_in", deepest, z, 3, 3)
    put("decoder.conv_out", 3, channels[0], 3, 3)
    return shapes


def around_codes(shapes, channels, z, width, codes, kernel):
    """CompVis' shapes with those at the quantizer: `z` channels outside, `width` of a code."""
    kernels = {
        "encoder.conv_out": (z, channels[-1], 3, 3),
        "quant_conv": (width, z, kernel, kernel),
        "post_quant_conv": (z, width, kernel, kernel),
    }
    for name, shape in kernels.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {"quantize.embedding.weight": (codes, width)}


def llamagen_file(channels, z, width, codes):
    """LlamaGen's tokenizer."""
    deepest, renamed = len(channels) - 1, {}
    places = {"block_1": 0, "attn_1": 1, "block_2": 2}
    for name, shape in compvis_file(channels, z, (deepest,)).items():
        name = re.sub(r"mid\.(\w+)", lambda m: f"mid.{places[m[1]]}", name)
        name = re.sub(r"encoder\.down\.", "encoder.conv_blocks.", name)
        name = re.sub(r"decoder\.up\.(\d+)", lambda m: f"decoder.conv_blocks.{deepest - int(m[1])}", name)
        renamed[name.replace(".block.", ".res.")] = shape
    return around_codes(renamed, channels, z, width, codes, 1)


def var_file(channels, z, codes, phis, scales):
    """VAR's tokenizer, whose attention has one convolution for queries, keys and values."""
    joined = {"quantize.ema_vocab_hit_SV": (scales, codes)}
    for name, shape in compvis_file(channels, z, (len(channels) - 1,)).items():
        place = re.fullmatch(r"(.*attn.*)\.([qkv])\.(\w+)", name)
        if place:
            name, shape = f"{place[1]}.qkv.{place[3]}", (3 * shape[0], *shape[1:])
        joined[name] = shape
    for i in range(phis):
        joined |= {
            f"quantize.quant_resi.qresi_ls.{i}.weight": (z, z, 3, 3),
            f"quantize.quant_resi.qresi_ls.{i}.bias": (z,),
        }
    return around_codes(joined, channels, z, z, codes, 3)


def diffusers_file(channels, z, codes):
    """aMUSEd's tokenizer by the names of diffusers, without attention."""
    shapes = {name: shape for name, shape in diffusers_vae_file(channels, z, ()).items() if "attentions" not in name}
    return around_codes(shapes, channels, z, z, codes, 1)


FILES = {
    "maskgit-vqgan-f16": maskgit_file(F16, 256, 1024, 2, 2, taming=False),
    "mage-vqgan-f16": maskgit_file(F16, 256, 1024, 2, 2, taming=True),
    "llamagen-vq-16": llamagen_file(F16, 256, 8, 16384),
    "llamagen-vq-8": llamagen_file((128, 256, 256, 512), 256, 8, 16384),
    "llamagen-vq-16-t2i": llamagen_file(F16, 256, 8, 16384),
    "meissonic-vq-f16": diffusers_file((128, 256, 256, 512, 768), 64, 8192),
    "var-vqvae-256": var_file((160, 160, 320, 320, 640), 32, 4096, 4, 10),
    "var-vqvae-512": var_file((160, 160, 320, 320, 640), 32, 4096, 4, 10),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_the_published_file_is_covered(name):
    network, params = parameters(name)
    layout = {"mage": "taming", "meissonic": "diffusers"}.get(name.partition("-")[0], "reference")
    ours = {key: tensor.shape for key, tensor in layouts.write(network, params, layout).items()}
    ours.pop("quantize.codebook_used", None)  # a counter that LlamaGen's files may hold
    assert ours == FILES[name]


def test_the_rules_of_these_files_give_the_golden_cases():
    assert maskgit_file((64, 128, 128), 24, 40, 2, 2, taming=False) == golden("maskgit-vqgan")[1]
    assert maskgit_file((64, 128, 128), 24, 40, 1, 2, taming=True) == golden("enat-vqgan")[1]
    small = (32, 32, 64, 64, 128)
    assert llamagen_file(small, 32, 8, 64) == golden("llamagen-vq")[1]
    assert var_file(small, 8, 64, 4, 5) == golden("var-vqvae")[1]


@pytest.mark.parametrize(
    ("name", "tokens", "vocabulary", "downsample"),
    [
        ("maskgit-vqgan-f16", None, 1024, 16),
        ("llamagen-vq-8", None, 16384, 8),
        ("var-vqvae-256", 680, 4096, 16),
        ("var-vqvae-512", 2240, 4096, 16),
    ],
)
def test_published_latents(name, tokens, vocabulary, downsample):
    """Tokens of an image as the papers count them."""
    latent = parameters(name)[0].latent
    assert (latent.tokens, latent.vocabulary, latent.downsample) == (tokens, vocabulary, downsample)
    assert latent.size == (None if tokens is None else int(name.rpartition("-")[2]))

"""The names that `maskdit import` knows: what they say, and every tensor of the published files at full size.

The names and shapes of the published state dicts are taken from the golden cases, stretched to full depth and width.
"""

import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from maskdit import config as configs
from maskdit.interop import layouts, published
from maskdit.tasks.generator import check_tokens

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
GENERATORS = [name for name in published.ALIASES if name.startswith(("dit", "maskdit"))]
TOKENS = [name for name, entry in published.ALIASES.items() if entry.generator and name not in GENERATORS]
"""Generators of a tokenizer's ids; their files have tests of their own."""
VAES = {  # width of each level, channels of a latent, levels with attention
    "sd-vae-ft-ema": ((128, 256, 512, 512), 4, ()),
    "sd-vae-ft-mse": ((128, 256, 512, 512), 4, ()),
    "mar-vae-kl16": ((128, 128, 256, 256, 512), 16, (4,)),
    "va-vae-f16d32": ((128, 128, 256, 256, 512), 32, (4,)),
}


@functools.cache
def golden(name):
    """Published arguments, and names and shapes of the parameters, of a small network."""
    case = json.loads((GOLDENS / name / "case.json").read_text())
    return case["config"], {name: tuple(shape) for name, shape in case["parameters"].items()}


def stretched(parameters, sections, depths):
    """Names and shapes at another size: block 0 of each stack so often, and sizes mapped by the name's section."""
    full = {}
    for name, shape in parameters.items():
        sizes = next(sizes for prefix, sizes in sections.items() if name.startswith(prefix))
        place = re.fullmatch(r"(.*blocks)\.(\d+)\.(.*)", name)
        if place is None or place[2] == "0":
            copies = [name] if place is None else [f"{place[1]}.{i}.{place[3]}" for i in range(depths[place[1]])]
            full |= dict.fromkeys(copies, tuple(sizes[size] for size in shape))
    return full


def multiples(small, full):
    """The sizes that are a few times a width, small -> full."""
    return {factor * small: factor * full for factor in (1, 2, 3, 4, 6)}


def dit_file(side):
    config, parameters = golden("dit")
    kept = {config["patch_size"], config["in_channels"], 32, 256}  # a patch of the output; the features of a time
    sizes = multiples(config["hidden_size"], 1152) | {size: size for size in kept} | {config["num_classes"] + 1: 1001}
    return {"pos_embed": (1, side**2, 1152)} | stretched(parameters, {"": sizes}, {"blocks": 28})


def dit_diffusers_file(side):
    """The same by the names of diffusers, as its script renames them."""
    renamed = {}
    for name, shape in dit_file(side).items():
        name = name.replace("x_embedder", "pos_embed").replace("final_layer.adaLN_modulation.1", "proj_out_1")
        name = name.replace("final_layer.linear", "proj_out_2").replace("adaLN_modulation.1", "norm1.linear")
        name = re.sub(r"^blocks", "transformer_blocks", name).replace("attn.proj", "attn1.to_out.0")
        name = name.replace("mlp.fc1", "ff.net.0.proj").replace("mlp.fc2", "ff.net.2")
        name = name.replace("t_embedder.mlp.0", "timestep_embedder.linear_1")
        name = name.replace("t_embedder.mlp.2", "timestep_embedder.linear_2").replace("y_embedder", "class_embedder")
        if "attn.qkv" in name:
            renamed |= {name.replace("attn.qkv", f"attn1.to_{p}"): (shape[0] // 3, *shape[1:]) for p in "qkv"}
        elif "_embedder" in name:
            renamed |= {f"transformer_blocks.{i}.norm1.emb.{name}": shape for i in range(28)}
        elif name != "pos_embed":
            renamed[name] = shape
    return renamed


def maskdit_file(side):
    config, parameters = golden("maskdit")
    patch = {size: size for size in (config["patch_size"], config["img_channels"], 16)}
    inner = {config["decoder_hidden_size"]: 512, 1: 1}
    encoder = multiples(config["hidden_size"], 1152)
    # in these sections a size that is a multiple of both widths is one of the decoder's
    decoder = encoder | multiples(config["decoder_hidden_size"], 512) | patch
    sections = {
        "model.decoder_blocks": decoder,
        "model.final_layer": decoder,
        "model.decoder_layer": encoder | inner,
        "model.mask_token": inner,
        "": encoder | patch | {256: 256, config["num_classes"]: 1000},
    }
    tables = {"model.pos_embed": (1, side**2, 1152), "model.decoder_pos_embed": (1, side**2, 512)}
    return tables | stretched(parameters, sections, {"model.blocks": 28, "model.decoder_blocks": 8})


def compvis_file(channels, latent, attention, blocks=2):
    """Names and shapes of CompVis' autoencoder."""
    shapes = {}

    def put(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name, before, after):
        put(f"{name}.norm1", before)
        put(f"{name}.conv1", after, before, 3, 3)
        put(f"{name}.norm2", after)
        put(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            put(f"{name}.nin_shortcut", after, before, 1, 1)

    def attend(name, width):
        put(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            put(f"{name}.{part}", width, width, 1, 1)

    levels = list(enumerate(channels))
    sides = (
        ("encoder", "down", levels, blocks, 3, channels[0], 2 * latent),
        ("decoder", "up", levels[::-1], blocks + 1, latent, channels[-1], 3),
    )
    for side, way, order, count, inputs, width, outputs in sides:
        put(f"{side}.conv_in", width, inputs, 3, 3)
        for i, after in order:
            for j in range(count):
                residual(f"{side}.{way}.{i}.block.{j}", width, after)
                width = after
                if i in attention:
                    attend(f"{side}.{way}.{i}.attn.{j}", width)
            if i != order[-1][0]:
                put(f"{side}.{way}.{i}.{way}sample.conv", width, width, 3, 3)
        for block in ("block_1", "block_2"):
            residual(f"{side}.mid.{block}", channels[-1], channels[-1])
        attend(f"{side}.mid.attn_1", channels[-1])
        put(f"{side}.norm_out", width)
        put(f"{side}.conv_out", outputs, width, 3, 3)
    put("quant_conv", 2 * latent, 2 * latent, 1, 1)
    put("post_quant_conv", latent, latent, 1, 1)
    return shapes


def diffusers_vae_file(channels, latent, attention, blocks=2):
    """The same by the names of diffusers."""
    renamed = {}
    for name, shape in compvis_file(channels, latent, attention, blocks).items():
        attends = ".attn_1." in name
        name = re.sub(r"down\.(\d+)\.block", r"down_blocks.\1.resnets", name)
        name = re.sub(r"down\.(\d+)\.downsample", r"down_blocks.\1.downsamplers.0", name)
        name = re.sub(r"up\.(\d+)\.block", lambda m: f"up_blocks.{len(channels) - 1 - int(m[1])}.resnets", name)
        name = re.sub(r"up\.(\d+)\.upsample", lambda m: f"up_blocks.{len(channels) - 1 - int(m[1])}.upsamplers.0", name)
        name = re.sub(r"mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", name)
        name = name.replace("mid.attn_1.norm", "mid_block.attentions.0.group_norm")
        name = re.sub(r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1.", name)
        name = name.replace("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0")
        name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
        renamed[name] = shape[:2] if attends else shape
    return renamed


@functools.cache
def parameters(name):
    """A full-size network and its parameters, of which only names, shapes and dtypes take memory."""
    network = configs.build(published.ALIASES[name].spec())
    shapes = layouts.parameter_shapes(network)
    shapes = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes)
    return network, shapes


def file_of(name, layout):
    """Names and shapes of the published file of a name."""
    if name in VAES:
        return (diffusers_vae_file if layout == "diffusers" else compvis_file)(*VAES[name])
    side = published.ALIASES[name].resolution // 16
    if name.startswith("dit"):
        return (dit_diffusers_file if layout == "diffusers" else dit_file)(side)
    return maskdit_file(side)


FILES = [
    (name, layout)
    for name in published.ALIASES
    for layout in ("reference", "diffusers")
    if (layout == "reference" and name in (*GENERATORS, *VAES)) or name.startswith(("dit", "sd-vae"))
]


@pytest.mark.parametrize(("name", "layout"), FILES)
def test_every_tensor_of_the_published_file_is_covered(name, layout):
    network, params = parameters(name)
    ours = {key: tensor.shape for key, tensor in layouts.write(network, params, layout).items()}
    assert ours == file_of(name, layout)


def test_the_rules_of_these_files_give_the_golden_cases():
    for name, file, config in (
        ("mar-vae", compvis_file, {"latent": 4, "channels": (32, 32, 64), "attention": (2,)}),
        ("sd-vae", diffusers_vae_file, {"latent": 4, "channels": (32, 64, 64, 96), "attention": ()}),
    ):
        assert file(**config) == golden(name)[1]


@pytest.mark.parametrize("name", ["mar-vae-kl16", "va-vae-f16d32"])
def test_a_layout_without_such_a_network_is_refused(name):
    with pytest.raises(ValueError, match=r"attention in its levels \(4,\)"):
        layouts.write(*parameters(name), "diffusers")


@pytest.mark.parametrize(("name", "count"), [("dit-xl-2-256", 675_129_632), ("sd-vae-ft-ema", 83_653_863)])
def test_as_many_numbers_as_published(name, count):
    """The authors' own counts; that of DiT includes the table of places."""
    assert sum(tensor.size for tensor in layouts.write(*parameters(name)).values()) == count


@pytest.mark.parametrize("name", GENERATORS)
def test_the_config_of_a_generator_is_the_published_network(name):
    entry = published.ALIASES[name]
    config = entry.config()
    assert configs.differences(config.task.network, entry.spec()) == ["dtype: 'bfloat16' != 'float32'"]
    assert config.task.tokenizer.source == entry.tokenizer and entry.tokenizer in published.ALIASES
    vae = published.ALIASES[entry.tokenizer].spec()
    assert set(configs.differences(config.task.tokenizer.spec, vae)) <= {"dtype: 'bfloat16' != 'float32'"}
    assert config.data.size == entry.resolution
    assert config.task.network.input_size * configs.build(vae).latent.downsample == entry.resolution
    conditional = name.endswith("conditional")
    assert config.guidance.weight == (1.0 if conditional else 1.5)
    assert config.guidance.channels == (3 if name.startswith("dit") else None)


@pytest.mark.parametrize("name", TOKENS)
def test_the_config_of_a_token_generator_is_the_published_network_on_its_tokenizer(name):
    entry = published.ALIASES[name]
    config = entry.config()
    assert set(configs.differences(config.task.network, entry.spec())) <= {"dtype: 'bfloat16' != 'float32'"}
    assert config.task.tokenizer.source == entry.tokenizer and entry.tokenizer in published.ALIASES
    theirs = published.ALIASES[entry.tokenizer].spec()
    others = configs.differences(config.task.tokenizer.spec, theirs)
    assert all(line.split(":")[0].endswith("dtype") for line in others)
    check_tokens(configs.build(config.task.network).layout, configs.build(theirs).latent)
    assert config.data.size == entry.resolution


@pytest.mark.parametrize(("name", "downsample", "scale"), [("sd-vae-ft-mse", 8, 0.18215), ("mar-vae-kl16", 16, 0.2325)])
def test_the_config_of_a_tokenizer_is_its_spec(name, downsample, scale):
    config = published.ALIASES[name].config()
    latent = configs.build(config.tokenizer).latent
    assert (latent.downsample, latent.scale) == (downsample, scale) and list(config) == ["tokenizer"]
    assert configs.from_json(configs.to_json(config)) == config


def test_the_listing_tells_source_file_licence_and_use():
    blocks = published.listing().split("\n\n")
    assert len(blocks) == len(published.ALIASES)
    for block, (name, entry) in zip(blocks, published.ALIASES.items(), strict=True):
        assert block.startswith(f"{name}: ") and f"{entry.resolution} x {entry.resolution}" in block
        for fact in (entry.file, entry.source or "", entry.licence, entry.generator, entry.tokenizer, entry.paper):
            assert fact in block
    assert "Ancestral, 250 steps, guidance 1.5 of the first 3 channels" in blocks[0]
    assert "Heun, 40 steps, no guidance" in published.listing()
    assert "Confidence, 8 steps, guidance up to 5.5 (linear)\n" in published.listing() + "\n"

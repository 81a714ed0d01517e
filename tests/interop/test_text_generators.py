"""Published files of MaskGen and Meissonic, and of Meissonic's tokenizer: variants, both ways, every tensor."""

import dataclasses

import jax
import numpy as np
import pytest

from maskdit import config as configs
from maskdit.config import build, spec
from maskdit.contracts import Latents
from maskdit.interop import layouts, maskgen, meissonic, vq_diffusers
from maskdit.interop.rules import LayoutError, export_params, import_params
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.vqgan import VQGAN
from tests.interop.test_published import golden, parameters

MASKGEN, MEISSONIC = golden("maskgen-vq")[0], golden("meissonic")[0]
VQMODEL = {
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "latent_channels": 3,
    "norm_num_groups": 2,
    "num_vq_embeddings": 5,
    "mid_block_add_attention": False,
}


def with_part(config, part, **fields):
    return config | {part: config[part] | fields}


UNTIED = with_part(MASKGEN, "maskgen", weight_tying=False, micro_condition=False, decoder_depth=12)
WHOLE = with_part(MEISSONIC, "transformer", downsample=False, upsample=False, num_layers=11, num_single_layers=1)
CASES = [
    (maskgen, MASKGEN),
    (maskgen, UNTIED),
    (meissonic, MEISSONIC),
    (meissonic, WHOLE | {"grid": [3, 5]}),
    (vq_diffusers, VQMODEL),
    (vq_diffusers, VQMODEL | {"mid_block_add_attention": True, "vq_embed_dim": 2, "unit_range": False}),
]


@pytest.mark.parametrize(("interop", "config"), CASES)
def test_round_trip_is_bit_equal(interop, config):
    network = build(interop.from_reference(config))
    shapes, rng = layouts.parameter_shapes(network), np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    state = export_params(interop.table(config), drawn)
    jax.tree.map(np.testing.assert_array_equal, import_params(interop.table(config), state, shapes), drawn)
    # what the parts of a name say is read back whole
    theirs = interop.to_reference(network) | ({"unit_range": network.unit_range} if interop is vq_diffusers else {})
    assert configs.differences(interop.from_reference(theirs), interop.from_reference(config)) == []


@pytest.mark.parametrize("name", ["maskgen-vq", "meissonic"])
def test_small_files_have_the_published_names(name):
    interop, (config, shapes) = {"maskgen-vq": maskgen, "meissonic": meissonic}[name], golden(name)
    network = build(interop.from_reference(config))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), layouts.parameter_shapes(network))
    assert {key: tensor.shape for key, tensor in layouts.write(network, zeros).items()} == shapes


def stretched(name, sizes, depths):
    """The golden case's names and shapes at full size; the last block of a stack stays the last."""
    full = {}
    for key, shape in golden(name)[1].items():
        stack, _, rest = key.partition(".")
        number, _, rest = rest.partition(".")
        small, depth = depths.get(stack, (0, 0))
        numbers = [number] if not depth else [depth - 1] if int(number) == small - 1 else range(depth - 1)
        for i in numbers:
            full[f"{stack}.{i}.{rest}" if depth else key] = tuple(sizes[size] for size in shape)
    return full


def test_every_tensor_of_the_published_files_is_covered():
    for name, width, depth in (("maskgen-vq-l", 1024, 16), ("maskgen-vq-xl", 1280, 20)):
        sizes = {48 * k: width * k for k in (1, 2, 4, 6)} | {1: 1, 20: 768, 36: 1024, 10: 128, 31: 9194}
        network, params = parameters(name)
        written = {key: tensor.shape for key, tensor in layouts.write(network, params).items()}
        assert written == stretched("maskgen-vq", sizes, {"blocks": (3, depth)})
    sizes = {48 * k: 1024 * k for k in (1, 3, 4, 5, 6)}
    sizes |= {1: 1, 2: 2, 16: 128, 20: 1024, 24: 8192, 30: 8256, 256: 256, 1328: 2304}
    network, params = parameters("meissonic-1024")
    written = {key: tensor.shape for key, tensor in layouts.write(network, params).items()}
    depths = {"transformer_blocks": (2, 14), "single_transformer_blocks": (2, 28)}
    assert written == stretched("meissonic", sizes, depths)
    assert meissonic.to_config(network)["axes_dims_rope"] == [16, 56, 56]


def test_scale_comes_before_shift_in_published_norms():
    network = build(maskgen.from_reference(MASKGEN))
    shapes, table = layouts.parameter_shapes(network), maskgen.table(MASKGEN)
    state = export_params(table, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    state["norm.linear.bias"] = np.arange(96, dtype=np.float32)
    state["blocks.2.norm1_context.linear.weight"][0] = 1.0  # the first number of the scale
    params = import_params(table, state | {"lm_head.weight": state["embeddings.weight"]}, shapes)
    np.testing.assert_array_equal(params["final"]["modulation"]["bias"], np.roll(np.arange(96), 48))
    kernel = params["blocks_2"]["text"]["modulation"]["kernel"]
    assert kernel[:, 48].all() and kernel.sum() == 48


@pytest.mark.parametrize(
    ("network", "fields", "message"),
    [
        (maskgen, {"classes": {"kind": 3}}, "labels"),
        (maskgen, {"grid": (2, 5)}, "grid"),
        (maskgen, {"pooled_width": 3}, "3 of the whole"),
        (maskgen, {"spare": 0}, "spare=0"),
        (meissonic, {"classes": {"kind": 3}}, "labels"),
        (meissonic, {"pooled_width": 3}, "width=48"),
        (vq_diffusers, {"attention_levels": (1,)}, "attention"),
        (vq_diffusers, {"quantize": VQ(codes=5, channels=3, l2=True)}, "l2"),
        (vq_diffusers, {"patch": 2}, "patches"),
        (vq_diffusers, {"quant_kernel": 3}, "3x3"),
    ],
)
def test_networks_that_nobody_publishes_are_refused(network, fields, message):
    config = {maskgen: MASKGEN, meissonic: MEISSONIC, vq_diffusers: VQMODEL}[network]
    changed = dataclasses.replace(build(network.from_reference(config)), **fields, parent=None)
    with pytest.raises(LayoutError, match=message):
        network.to_reference(changed)


@pytest.mark.parametrize(
    ("interop", "config", "message"),
    [
        (meissonic, with_part(MEISSONIC, "transformer", upsample=False), "upsample"),
        (meissonic, with_part(MEISSONIC, "transformer", pooled_projection_dim=9), "pooled_projection_dim=9"),
        (meissonic, with_part(MEISSONIC, "transformer", guidance_embeds=True), "guidance_embeds"),
        (meissonic, with_part(MEISSONIC, "transformer", vocab_size=24), "no row for the mask"),
        (vq_diffusers, VQMODEL | {"norm_type": "spatial"}, "norm_type"),
    ],
)
def test_published_variants_that_we_do_not_have_are_refused(interop, config, message):
    with pytest.raises(LayoutError, match=message):
        interop.from_reference(config)


def test_networks_read_their_micro_conditions_from_the_arguments():
    fields = meissonic.from_reference(MEISSONIC).scalars.to_dict()
    assert fields == {"width": 128.0, "height": 96.0, "crop_y": 0.0, "crop_x": 0.0, "aesthetic": 6.0}
    assert maskgen.from_reference(MASKGEN).scalars.to_dict() == {"aesthetic": 6.5}
    assert maskgen.from_reference(UNTIED).scalars.to_dict() == {}


def test_a_vqgan_of_unit_images_converts_them():
    fields = {"channels": (4, 4), "layers_per_block": 1, "latent_channels": 3, "groups": 2, "attention_levels": ()}
    quantize = spec(VQ, codes=5, channels=3)
    plain, unit = (
        build(spec(VQGAN, quantize=quantize, middle_attention=False, unit_range=on, **fields)) for on in (False, True)
    )
    images = np.random.default_rng(0).uniform(-1, 1, (1, 4, 4, 3)).astype(np.float32)
    params = plain.init(jax.random.key(0), images)
    assert not any("attn" in name for name in params["params"]["encoder"])
    ours, theirs = unit.apply(params, images, method="encode"), plain.apply(params, (images + 1) / 2, method="encode")
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    latents = Latents(ids=ours.ids)
    decoded = plain.apply(params, latents, method="decode")
    np.testing.assert_allclose(unit.apply(params, latents, method="decode"), 2 * decoded - 1, atol=1e-6)

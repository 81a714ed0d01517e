"""Published state dicts through the tables, both ways, for networks of several sizes."""

import jax
import numpy as np
import pytest

from maskdit.config import build
from maskdit.interop import dit, dit_diffusers, layouts, llamagen_vq, maskdit, maskgit_vqgan, vae, var_vqvae
from maskdit.interop.rules import TableError, export_params, import_params
from maskdit.layers.embed import sincos_2d
from tests.interop.small_networks import (
    CASES,
    COMPVIS,
    DIFFUSERS,
    DIT,
    LLAMAGEN,
    MASKDIT,
    MASKGIT,
    TAMING,
    VAR,
    published,
    shapes,
    shapes_of,
    table_of,
)


@pytest.mark.parametrize(("interop", "config"), CASES)
def test_round_trip_is_bit_equal(interop, config):
    state = published(interop, config)
    params = import_params(table_of(interop, config), state, shapes_of(interop, config))
    back = export_params(table_of(interop, config), params)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_layouts_of_kernels():
    state = published(dit, DIT)
    params = import_params(dit.table(DIT), state, shapes_of(dit, DIT))
    weight = state["x_embedder.proj.weight"]  # [D, C, p, p]
    row, column, channel, p, channels = 1, 0, 2, DIT["patch_size"], DIT["in_channels"]
    entry = params["patch_embed"]["kernel"][(row * p + column) * channels + channel]
    np.testing.assert_array_equal(entry, weight[:, channel, row, column])
    state = published(maskdit, MASKDIT)
    params = import_params(maskdit.table(MASKDIT), state, shapes_of(maskdit, MASKDIT))
    table = state["model.y_embedder.embedding_table.weight"]  # [D, classes]
    np.testing.assert_array_equal(params["label_embed"]["label"][3], table[:, 3])


def test_scanned_and_unrolled_networks_take_the_same_state():
    state, entry = published(dit, DIT), dit.from_reference(DIT)
    unrolled = import_params(dit.table(DIT), state, shapes(entry))
    entry.scan = True
    scanned = import_params(dit.table(DIT), state, shapes(entry))
    jax.tree.map(np.testing.assert_array_equal, unrolled, scanned)


def test_earlier_attention_names_give_the_same_parameters():
    state, target = published(vae, DIFFUSERS), shapes_of(vae, DIFFUSERS)
    earlier = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in state.items():
        for new, word in earlier.items():
            name = name.replace(f".{new}.", f".{word}.")
        old[name] = tensor
    assert old.keys() != state.keys()
    table = table_of(vae, DIFFUSERS)
    jax.tree.map(np.testing.assert_array_equal, import_params(table, old, target), import_params(table, state, target))
    with pytest.raises(TableError, match="was filled by another tensor already"):
        import_params(table, old | state, target)


def test_both_namings_describe_one_autoencoder():
    config = DIFFUSERS | {"block_out_channels": [32, 32, 64], "norm_num_groups": 32}
    other = COMPVIS | {"ch_mult": [1, 1, 2], "attn_resolutions": [], "latent_scale": config["scaling_factor"]}
    assert vae.from_reference(config) == vae.from_reference(other)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes_of(vae, config))
    one, two = export_params(vae.diffusers(config), params), export_params(vae.compvis(other), params)
    pairs = {
        "decoder.up_blocks.0.resnets.0.conv1.weight": "decoder.up.2.block.0.conv1.weight",
        "decoder.up_blocks.1.upsamplers.0.conv.bias": "decoder.up.1.upsample.conv.bias",
        "encoder.down_blocks.2.resnets.0.conv_shortcut.weight": "encoder.down.2.block.0.nin_shortcut.weight",
        "encoder.mid_block.resnets.1.norm2.weight": "encoder.mid.block_2.norm2.weight",
    }
    for name, counterpart in pairs.items():
        np.testing.assert_array_equal(one[name], two[counterpart])
    attention = two["decoder.mid.attn_1.proj_out.weight"]
    np.testing.assert_array_equal(one["decoder.mid_block.attentions.0.to_out.0.weight"], attention[:, :, 0, 0])


def test_counters_take_any_values_and_are_written_as_zeros():
    state, target = published(var_vqvae, VAR), shapes_of(var_vqvae, VAR)
    counts = state | {"quantize.ema_vocab_hit_SV": np.ones((9, 6), np.float32)}  # of another list of scales
    params = import_params(var_vqvae.table(VAR), counts, target)
    back = export_params(var_vqvae.table(VAR), params)["quantize.ema_vocab_hit_SV"]
    np.testing.assert_array_equal(back, np.zeros((2, 6)))


def test_convolutions_of_scales_that_share_none_are_read():
    state, target = published(var_vqvae, VAR), shapes_of(var_vqvae, VAR)
    apart = {name.replace("quant_resi.qresi_ls.", "quant_resi."): tensor for name, tensor in state.items()}
    assert apart.keys() != state.keys()
    table = var_vqvae.table(VAR)
    jax.tree.map(
        np.testing.assert_array_equal, import_params(table, apart, target), import_params(table, state, target)
    )


def test_losses_in_a_checkpoint_are_passed_over():
    state, target = published(vae, COMPVIS), shapes_of(vae, COMPVIS)
    more = state | {"loss.discriminator.main.0.weight": np.zeros(3)}
    table = table_of(vae, COMPVIS)
    jax.tree.map(np.testing.assert_array_equal, import_params(table, more, target), import_params(table, state, target))


def test_gradients_go_back_through_the_table():
    """The derivative of f(published weights) is the exported derivative of f(our parameters)."""
    rng = np.random.default_rng(1)
    state, target = published(dit, DIT), shapes_of(dit, DIT)
    probe = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in state.items() if name != "pos_embed"}
    # f = sum of probe * weights, so its published gradient is the probe
    gradient = import_params(dit.table(DIT), probe, target)
    back = export_params(dit.table(DIT), gradient, fixed=False)
    assert back.keys() == probe.keys()
    for name in probe:
        np.testing.assert_array_equal(back[name], probe[name])


@pytest.mark.parametrize(("interop", "config"), [(dit, DIT), (maskdit, MASKDIT)])
def test_stretched_places_are_written_as_the_network_computes_them(interop, config, monkeypatch):
    config = config | {"position_grid": 3}
    network, computed = build(interop.from_reference(config)), {}

    def noted(width, grid, span=None):
        computed[width] = sincos_2d(width, grid, span)
        return computed[width]

    for module in ("dit", "maskdit"):
        monkeypatch.setattr(f"maskdit.networks.{module}.sincos_2d", noted)
    assert interop.to_reference(network)["position_grid"] == network.position_grid == 3
    layouts.parameter_shapes(network)
    state = published(interop, config)
    widths = {name: x.shape[-1] for name, x in state.items() if name.endswith("pos_embed")}
    assert sorted(widths.values()) == sorted(computed)
    for name, width in widths.items():
        np.testing.assert_array_equal(state[name][0], sincos_2d(width, network.layout.grid, 3))
        np.testing.assert_array_equal(state[name][0], computed[width])
    import_params(interop.table(config), state, shapes_of(interop, config))
    with pytest.raises(TableError) as fault:
        import_params(interop.table(config | {"position_grid": None}), state, shapes_of(interop, config))
    assert {line.partition(":")[0] for line in fault.value.faults["other values"]} == set(widths)


def test_joined_parts_are_stored_apart():
    params = jax.tree.map(lambda x: np.random.default_rng(0).standard_normal(x.shape, np.float32), shapes_of(dit, DIT))
    one = export_params(dit.table(DIT), params)
    other = export_params(dit_diffusers.table(DIT), params)
    for kind in ("weight", "bias"):
        thirds = [other[f"transformer_blocks.1.attn1.to_{part}.{kind}"] for part in "qkv"]
        np.testing.assert_array_equal(np.concatenate(thirds), one[f"blocks.1.attn.qkv.{kind}"])
    state = {name: tensor for name, tensor in other.items() if name != "transformer_blocks.1.attn1.to_k.bias"}
    with pytest.raises(TableError, match=r"attn/qkv/bias: the state dict has no .*\.attn1\.to_k\.bias"):
        import_params(dit_diffusers.table(DIT), state, params)


@pytest.mark.parametrize(("interop", "config"), CASES)
def test_a_network_tells_its_published_arguments(interop, config):
    network = build(interop.from_reference(config))
    name = {"block_out_channels": "to_diffusers", "ddconfig": "to_taming"}.get(next(iter(config)), "to_reference")
    arguments = getattr(interop, name)(network)
    assert build(interop.from_reference(arguments)) == network
    assert arguments.items() >= {key: config[key] for key in config.keys() & arguments.keys() - FREE}.items()


FREE = {"mae_loss_coef", "class_dropout_prob", "resolution", "attn_resolutions"}
"""Arguments of which only a part tells the network."""


def test_a_label_of_another_name_goes_in_and_out():
    config = DIT | {"label": "species"}
    network = build(dit.from_reference(config))
    assert dict(network.classes) == {"species": 5} and dit.to_reference(network)["label"] == "species"
    params = import_params(dit.table(config), published(dit, DIT), shapes_of(dit, config))
    assert params["label_embed"].keys() == {"species"}


@pytest.mark.parametrize(
    ("write", "entry", "fields", "message"),
    [
        (dit.to_reference, (dit, DIT), {"classes": {"a": 2, "b": 3}}, r"2 labels \(a, b\)"),
        (dit.to_reference, (dit, DIT), {"classes": {}}, r"0 labels \(none\)"),
        (maskdit.to_reference, (maskdit, MASKDIT), {"classes": {"a": 2, "b": 3}}, "2 labels"),
        (dit_diffusers.to_config, (dit, DIT), {}, "mlp_ratio=2"),
        (dit_diffusers.to_config, (dit, DIT), {"mlp_ratio": 4.0, "label_null": False}, "no null label"),
        (dit_diffusers.to_config, (dit, DIT), {"position_grid": 3}, "use the layout `reference`"),
        (vae.to_reference, (vae, COMPVIS), {"quant_conv": False}, "quant_conv=False"),
        (vae.to_reference, (vae, COMPVIS), {"groups": 16}, "16 groups"),
        (vae.to_reference, (vae, COMPVIS), {"channels": (32, 48)}, "not multiples"),
        (vae.to_diffusers, (vae, COMPVIS | {"ch_mult": [2, 2]}), {}, "32 channels after its first convolution and 64"),
        (vae.to_diffusers, (vae, COMPVIS), {}, r"attention in its levels \(1,\)"),
        (maskgit_vqgan.to_taming, (maskgit_vqgan, MASKGIT), {}, "1 middle blocks"),
        (maskgit_vqgan.to_reference, (maskgit_vqgan, TAMING), {}, "2 middle blocks and 1 in a level"),
        (
            llamagen_vq.to_reference,
            (llamagen_vq, LLAMAGEN),
            {"attention_levels": ()},
            r"its levels \(\), not the deepest",
        ),
        (llamagen_vq.to_reference, (llamagen_vq, LLAMAGEN), {"quant_kernel": 3}, "3x3 convolutions"),
        (llamagen_vq.to_reference, (var_vqvae, VAR), {"quant_kernel": 1}, "quantizer MultiScaleVQ"),
        (var_vqvae.to_reference, (llamagen_vq, LLAMAGEN), {}, "quantizer VQ"),
        (var_vqvae.to_reference, (var_vqvae, VAR), {"latent_channels": 8}, "8 latent channels and 4 of its codes"),
    ],
)
def test_what_the_published_model_does_not_have_is_refused(write, entry, fields, message):
    interop, config = entry
    spec = interop.from_reference(config)
    for field, value in fields.items():
        with spec.ignore_type(), spec.unlocked():
            spec[field] = value
    with pytest.raises(ValueError, match=message):
        write(build(spec))


@pytest.mark.parametrize(
    ("interop", "config", "message"),
    [
        (vae, DIFFUSERS | {"act_fn": "gelu"}, "act_fn='gelu'"),
        (
            vae,
            DIFFUSERS | {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            "AttnDownEncoderBlock2D",
        ),
        (vae, COMPVIS | {"z_channels": 3}, "z_channels=3"),
        (maskdit, MASKDIT | {"pad_cls_token": True}, "pad_cls_token=True"),
        (maskgit_vqgan, MASKGIT | {"embedding_dim": 8}, "embedding_dim=8"),
        (llamagen_vq, LLAMAGEN | {"decoder_ch_mult": [1, 2]}, "as many levels"),
        (var_vqvae, VAR | {"using_mid_sa": False}, "using_mid_sa=False"),
    ],
)
def test_other_architectures_are_refused(interop, config, message):
    with pytest.raises(ValueError, match=message):
        interop.from_reference(config)

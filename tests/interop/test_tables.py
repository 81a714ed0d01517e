"""Published state dicts through the tables, both ways, for networks of several sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.config import build
from maskdit.contracts import Cond
from maskdit.interop import dit, maskdit, vae
from maskdit.interop.rules import TableError, export_params, import_params

DIT = {
    "input_size": 4,
    "patch_size": 2,
    "in_channels": 3,
    "hidden_size": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "num_classes": 5,
    "class_dropout_prob": 0.1,
    "learn_sigma": True,
}
MASKDIT = {
    "img_resolution": 4,
    "img_channels": 3,
    "patch_size": 1,
    "hidden_size": 12,
    "depth": 1,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "use_decoder": True,
    "decoder_hidden_size": 8,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
    "num_classes": 5,
    "mae_loss_coef": 0.1,
}
DIFFUSERS = {
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "latent_channels": 2,
    "norm_num_groups": 2,
    "scaling_factor": 0.5,
}
COMPVIS = {
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "resolution": 16,
    "embed_dim": 2,
    "z_channels": 2,
    "latent_scale": 0.2,
}
CASES = [
    (dit, DIT),
    (dit, DIT | {"depth": 12, "patch_size": 4, "learn_sigma": False, "class_dropout_prob": 0.0}),
    (maskdit, MASKDIT),
    (maskdit, MASKDIT | {"depth": 11, "mae_loss_coef": 0.0, "num_classes": 0, "img_resolution": 6, "patch_size": 3}),
    (maskdit, MASKDIT | {"use_decoder": False}),
    (vae, DIFFUSERS),
    (vae, DIFFUSERS | {"block_out_channels": [2, 4, 4], "layers_per_block": 2, "use_quant_conv": False}),
    (vae, COMPVIS),
    (vae, COMPVIS | {"ch_mult": [1, 1, 2], "attn_resolutions": [16, 4], "num_res_blocks": 2, "in_channels": 1}),
]


def shapes(entry):
    """Shapes of the parameters of the network of a spec."""
    net = build(entry)
    if hasattr(net, "latent"):
        side = net.latent.downsample
        inputs = (jax.ShapeDtypeStruct((1, side, side, net.in_channels), jnp.float32),)
    else:
        labels = {name: jnp.zeros((1,), jnp.int32) for name in net.classes}
        inputs = (jax.ShapeDtypeStruct((1, *net.layout.shape), jnp.float32), jnp.zeros((1,)), Cond(labels=labels))
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]


def published(interop, config, seed=0):
    """A random state dict with the names and shapes that the network is written as."""
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes_of(interop, config))
    return export_params(interop.table(config), drawn)


def shapes_of(interop, config):
    return shapes(interop.from_reference(config))


@pytest.mark.parametrize(("interop", "config"), CASES)
def test_round_trip_is_bit_equal(interop, config):
    state = published(interop, config)
    params = import_params(interop.table(config), state, shapes_of(interop, config))
    back = export_params(interop.table(config), params)
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
    table = vae.table(DIFFUSERS)
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


def test_losses_in_a_checkpoint_are_passed_over():
    state, target = published(vae, COMPVIS), shapes_of(vae, COMPVIS)
    more = state | {"loss.discriminator.main.0.weight": np.zeros(3)}
    table = vae.table(COMPVIS)
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


def test_faults_are_listed_by_name():
    state, target = published(dit, DIT), shapes_of(dit, DIT)
    state["head.weight"] = np.zeros((2, 2))
    state["blocks.7.attn.qkv.bias"] = np.zeros(24)
    state["blocks.1.mlp.fc1.weight"] = np.zeros((16, 9))
    state["blocks.0.mlp.fc1.bias"] = np.zeros((16, 1))
    state["pos_embed"] = np.zeros((1, 4, 8))
    del state["final_layer.linear.bias"]
    with pytest.raises(TableError) as fault:
        import_params(dit.table(DIT), state, target)
    text = str(fault.value)
    for line in (
        "head.weight: no row of the table takes it",
        "blocks.7.attn.qkv.bias: the model has no parameter blocks_7/attn/qkv/bias",
        "blocks.1.mlp.fc1.weight: has shape (16, 9), the model needs (16, 8)",
        "blocks.0.mlp.fc1.bias: has shape (16, 1), the model needs (16,)",
        "pos_embed: differs by up to",
        "final/linear/bias: no tensor of the state dict fills it",
    ):
        assert line in text
    assert len(text.splitlines()) == 7


def test_parameters_without_a_row_are_listed():
    params = import_params(dit.table(DIT), published(dit, DIT), shapes_of(dit, DIT))
    with pytest.raises(TableError, match="adapter/kernel"):
        export_params(dit.table(DIT), params | {"adapter": {"kernel": np.zeros(2)}})


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
    ],
)
def test_other_architectures_are_refused(interop, config, message):
    with pytest.raises(ValueError, match=message):
        interop.from_reference(config)

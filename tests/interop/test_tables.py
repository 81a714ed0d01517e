"""Published state dicts through the tables, both ways, for networks of several sizes."""

import dataclasses
import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.config import build, from_json, to_json
from maskdit.interop import dit, dit_diffusers, layouts, maskdit, vae
from maskdit.interop.rules import TRANSPOSE, Row, TableError, export_params, import_params

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
    return _shapes(to_json(entry))


@functools.cache
def _shapes(entry):
    return layouts.parameter_shapes(build(from_json(entry)))


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
    faults = {
        "unmatched": (
            "head.weight: no row of the table takes it",
            "blocks.7.attn.qkv.bias: the model has no parameter blocks_7/attn/qkv/bias",
        ),
        "unfilled": ("final/linear/bias: the state dict has no final_layer.linear.bias",),
        "mis-shaped": (
            "blocks.0.mlp.fc1.bias: has shape (16, 1), the model needs (16,)",
            "blocks.1.mlp.fc1.weight: has shape (16, 9), the model needs (16, 8)",
        ),
        "other values": ("pos_embed: differs by up to 1 from the table that the model computes",),
    }
    assert {group: set(lines) for group, lines in fault.value.faults.items()} == {
        group: set(lines) for group, lines in faults.items()
    }
    assert all(line in str(fault.value) for lines in faults.values() for line in lines)


def test_a_long_list_of_faults_is_cut_in_the_text_and_whole_in_the_exception():
    state, target = published(dit, DIT | {"depth": 12}), shapes_of(dit, DIT)
    with pytest.raises(TableError, match=r"no place for \(100\)(.*\n){13}.*and 88 more") as fault:
        import_params(dit.table(DIT), state, target)
    assert len(fault.value.faults["unmatched"]) == 100 and list(fault.value.faults) == ["unmatched"]


@pytest.mark.parametrize(
    ("interop", "config", "needed"),
    [(dit, DIT, "(6, 8)"), (maskdit, MASKDIT, "(12, 5)"), (dit_diffusers, DIT, "(6, 8)")],
)
def test_another_number_of_classes_is_told_in_classes(interop, config, needed):
    model = dit if interop is dit_diffusers else interop
    table, target = interop.table(config), shapes_of(model, config)
    other = shapes_of(model, config | {"num_classes": 3})
    state = export_params(interop.table(config | {"num_classes": 3}), jax.tree.map(lambda x: np.zeros(x.shape), other))
    with pytest.raises(TableError) as fault:
        import_params(table, state, target)
    assert set(fault.value.faults) == {"mis-shaped"}
    assert f"the model needs {needed}: the file has 3 classes, the network 5: " in str(fault.value)


@dataclasses.dataclass
class Lazy:
    """A tensor that is made when it is read, and counts how often it is."""

    array: np.ndarray
    reads: int = 0

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def __array__(self, dtype=None, copy=None):
        self.reads += 1
        return self.array.astype(dtype or self.array.dtype)


def test_nothing_is_read_before_all_fits_and_then_each_tensor_once():
    lazy = {name: Lazy(tensor) for name, tensor in published(dit, DIT).items()}
    target, table = shapes_of(dit, DIT), dit.table(DIT)
    with pytest.raises(TableError):
        import_params(table, lazy | {"more": Lazy(np.zeros(1))}, target)
    assert {name for name, tensor in lazy.items() if tensor.reads} <= {"pos_embed"}
    lazy.pop("pos_embed")
    params = import_params(table, lazy, target)
    assert {tensor.reads for tensor in lazy.values()} == {1}
    assert all(leaf.flags.c_contiguous and leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_become_the_targets(dtype):
    table, target = dit.table(DIT), shapes_of(dit, DIT)
    state = {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in published(dit, DIT).items()}
    state.pop("pos_embed")  # rounded to 16 bits it is another table
    params = import_params(table, state, target)
    back = export_params(table, params)
    for name, tensor in state.items():
        assert back[name].dtype == np.float32
        np.testing.assert_array_equal(back[name], tensor.astype(np.float32))


def test_import_holds_the_parameters_and_one_tensor():
    count, size = 16, 256
    arrays = [np.full((size, size), i, np.float32) for i in range(count)]
    state = {f"layers.{i}.weight": Lazy(array) for i, array in enumerate(arrays)}
    target = {f"layers_{i}": {"kernel": jax.ShapeDtypeStruct((size, size), np.float32)} for i in range(count)}
    table = [Row("layers.{i}.weight", "layers_{i}/kernel", TRANSPOSE)]
    import_params(table, state, target)  # what is cached
    tracemalloc.start()
    params = import_params(table, state, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert peak < whole + 2.5 * arrays[0].nbytes


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


def test_copies_must_be_equal():
    table, target = dit_diffusers.table(DIT), shapes_of(dit, DIT)
    state = export_params(table, jax.tree.map(lambda x: np.ones(x.shape, np.float32), target))
    first, second = (f"transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_2.bias" for i in range(2))
    jax.tree.map(np.testing.assert_array_equal, export_params(table, import_params(table, state, target)), state)
    with pytest.raises(TableError) as fault:
        import_params(table, state | {second: state[second] + 1e-6}, target)
    assert fault.value.faults == {"other values": (f"{second}: differs from {first}, of which it is a copy",)}
    with pytest.raises(TableError, match=f"the state dict has no {second}"):
        import_params(table, {name: tensor for name, tensor in state.items() if name != second}, target)


def test_parameters_without_a_row_are_listed():
    params = import_params(dit.table(DIT), published(dit, DIT), shapes_of(dit, DIT))
    with pytest.raises(TableError, match="adapter/kernel"):
        export_params(dit.table(DIT), params | {"adapter": {"kernel": np.zeros(2)}})


@pytest.mark.parametrize(("interop", "config"), CASES)
def test_a_network_tells_its_published_arguments(interop, config):
    network = build(interop.from_reference(config))
    arguments = getattr(interop, "to_diffusers" if "block_out_channels" in config else "to_reference")(network)
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
        (vae.to_reference, (vae, COMPVIS), {"quant_conv": False}, "quant_conv=False"),
        (vae.to_reference, (vae, COMPVIS), {"groups": 16}, "16 groups"),
        (vae.to_reference, (vae, COMPVIS), {"channels": (32, 48)}, "not multiples"),
        (vae.to_diffusers, (vae, COMPVIS), {}, r"attention in its levels \(1,\)"),
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
        (vae, COMPVIS | {"ch_mult": [2, 4]}, "ch_mult="),
        (maskdit, MASKDIT | {"pad_cls_token": True}, "pad_cls_token=True"),
    ],
)
def test_other_architectures_are_refused(interop, config, message):
    with pytest.raises(ValueError, match=message):
        interop.from_reference(config)

"""State dicts through a table of rows: what is refused, by which sentence, and what is read when."""

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.interop import dit, dit_diffusers, maskdit
from maskdit.interop.rules import TRANSPOSE, Row, TableError, export_params, import_params
from tests.interop.small_networks import DIT, MASKDIT, published, shapes_of


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


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("blocks.0.mlp.fc1.bias", np.zeros(16, np.int8), "holds int8, the model needs floats"),
        ("blocks.0.mlp.fc1.bias", np.zeros(16, np.complex64), "holds complex64, the model needs floats"),
        ("blocks.0.mlp.fc1.bias", np.full(16, np.nan, np.float16), "finite numbers of float32"),
        ("blocks.0.mlp.fc1.bias", np.full(16, 1e300), "finite numbers of float32"),
        ("pos_embed", np.zeros((1, 4, 8), np.int64), "holds int64, the model computes floats"),
        ("pos_embed", np.full((1, 4, 8), np.nan, np.float32), "differs by up to nan"),
    ],
)
def test_values_that_are_no_parameters_are_refused(name, tensor, says):
    with pytest.raises(TableError) as fault:
        import_params(dit.table(DIT), published(dit, DIT) | {name: tensor}, shapes_of(dit, DIT))
    (line,) = fault.value.faults["other values"]
    assert line.startswith(f"{name}: ") and says in line


@pytest.mark.parametrize(
    ("interop", "config", "side"), [(dit, DIT, "input_size"), (maskdit, MASKDIT, "img_resolution")]
)
def test_a_table_of_another_resolution_is_told_in_places(interop, config, side):
    larger = config | {side: 2 * config[side]}
    with pytest.raises(TableError) as fault:
        import_params(interop.table(config), published(interop, larger), shapes_of(interop, config))
    places = (config[side] // config["patch_size"]) ** 2
    told = f"a grid of {4 * places} places, this network of {places}: another resolution; take another name"
    assert set(fault.value.faults) == {"mis-shaped"} and all(told in line for line in fault.value.faults["mis-shaped"])


def test_names_are_told_on_one_line():
    with pytest.raises(TableError) as fault:
        import_params(dit.table(DIT), published(dit, DIT) | {"a\n\x1b[2J": np.zeros(1)}, shapes_of(dit, DIT))
    assert fault.value.faults == {"unmatched": ("a??[2J: no row of the table takes it",)}


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
    params = import_params(table, state, target)
    back = export_params(table, params)
    for name, tensor in state.items():
        if name == "pos_embed":
            continue  # computed anew
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

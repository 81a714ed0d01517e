import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maskdit.layers.sharding import LARGE
from maskdit.training.mesh import MeshShape, batch_sharding, local_rows, network_lines_of, shardings


def test_one_size_takes_what_is_left():
    assert dict(MeshShape(data=-1, fsdp=4).make().shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize("shape", [MeshShape(3), MeshShape(-1, 3), MeshShape(-1, -1), MeshShape(0, 8), MeshShape(2, 2)])
def test_meshes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="8 devices"):
        shape.make()


def test_names_decide_where_an_axis_lies():
    mesh = MeshShape(data=2, fsdp=2, tensor=2).make()
    box = lambda shape, *names: nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)  # noqa: E731
    tree = {
        "kernel": box((8, 16), "embed", "mlp"),
        "odd": box((7, 16), "embed", "mlp"),
        "twice": box((8, 8), "embed", "embed"),
        "large": jax.ShapeDtypeStruct((3, LARGE), jnp.float32),
        "small": jax.ShapeDtypeStruct((8, 8), jnp.float32),
        "undivided": box((1023, LARGE), "embed", "other"),
        "mixture": box((4, 8, 16), "experts", "embed", "mlp"),
        "video": box((8, 4, 16), "frames", None, "embed"),
    }
    specs = {name: sharding.spec for name, sharding in shardings(tree, mesh).items()}
    assert specs == {
        "kernel": P("fsdp", "tensor"),
        "odd": P(None, "tensor"),
        "twice": P("fsdp", None),
        "large": P(None, "fsdp"),
        "small": P(None, None),
        "undivided": P(None, "fsdp"),
        "mixture": P("fsdp", None, "tensor"),
        "video": P("tensor", None, "fsdp"),
    }


def slices_of(mesh):
    return np.vectorize(lambda device: device.id // 4)(mesh.devices)


def test_slices_lie_along_the_axis_that_is_asked_for():
    mesh = MeshShape(data=2, fsdp=2, dcn_data=2).make()
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert (slices_of(mesh)[:2] == 0).all() and (slices_of(mesh)[2:] == 1).all()
    mesh = MeshShape(data=-1, fsdp=2, dcn_data=1, dcn_fsdp=2).make()
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert (slices_of(mesh)[:, :2] == 0).all() and (slices_of(mesh)[:, 2:] == 1).all()
    with pytest.raises(ValueError, match=r"dcn_fsdp=3.*slice"):
        MeshShape(dcn_data=1, dcn_fsdp=3).make()


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU core as jax shows it."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    core_on_chip: int = 0


def test_neighbours_on_the_network_are_neighbours_on_the_mesh():
    squares = [(x, y, 0) for y0 in (0, 2) for x0 in (0, 2) for y in (y0, y0 + 1) for x in (x0, x0 + 1)]  # by host
    chips = [Chip(i, place, number) for number in (1, 0) for i, place in enumerate(squares)]
    mesh = MeshShape(data=1, fsdp=-1).make(chips)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 16, "tensor": 1}
    assert [chip.slice_index for chip in mesh.devices[:, 0, 0]] == [0, 1]
    assert [chip.coords[:2] for chip in mesh.devices[0, :, 0]][:5] == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1)]
    assert network_lines_of(mesh) == {"data": (2,), "fsdp": (4, 4), "tensor": (1,)}
    assert network_lines_of(MeshShape().make(jax.devices()))["data"] == (8,)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as jax shows it: numbers called coordinates, and the NVLink domain as its slice."""

    id: int
    slice_index: int
    coords: tuple[int, ...]


def test_gpus_are_taken_in_order_and_their_nodes_are_slices():
    gpus = [Gpu(i, i // 8, (i % 8,)) for i in range(16)]
    mesh = MeshShape(data=1, fsdp=-1).make(gpus)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 8, "tensor": 1}
    assert [gpu.id for gpu in mesh.devices.flat] == list(range(16))
    assert network_lines_of(mesh)["fsdp"] == (8,)
    with pytest.raises(ValueError, match="8, 7 devices"):
        MeshShape().make(gpus[:-1])


@pytest.mark.parametrize("wrong", [{"dcn_fsdp": 0}, {"dcn_tensor": -1}, {"dcn_data": 0}])
def test_factors_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="1 or more"):
        MeshShape(**wrong).make()


def test_rows_are_blocks_and_cover_the_batch():
    mesh = MeshShape(data=2, fsdp=4).make()
    assert local_rows(mesh, 16) == list(range(16))
    placed = jax.device_put(jnp.arange(16), batch_sharding(mesh))
    assert [shard.data.tolist() for shard in placed.addressable_shards][:2] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="multiple of 8"):
        local_rows(mesh, 12)

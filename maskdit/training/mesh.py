"""The device mesh, and which axis of an array lies on which axis of the mesh.

Parameters carry logical axis names; `RULES` maps names to mesh axes. Arrays without names, and large ones whose names
do not cut them, follow a fallback rule: the largest axis that divides is cut over `fsdp`. Batches are cut over `data`
and `fsdp` together.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maskdit.contracts import PyTree
from maskdit.layers.sharding import network_lines, placed

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
RULES: dict[str, str | tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "cond": "tensor",
    "vocab": "tensor",
    "experts": "fsdp",
    "frames": "tensor",
}
"""Logical axis -> mesh axis. `experts`: the leading axis of a mixture's weights; `frames`: the time axis of videos."""


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes; -1, at most once, takes the devices that the others leave.

    Devices that a data-centre network (DCN) joins form slices: TPU slices, or the GPUs that NVLink joins, often those
    of a node. The `dcn_` factors say over which axes the slices are laid; the others are sizes within one slice. An
    axis's whole size is the product of the two. Gradients of parameters that are cut over slices (`dcn_fsdp`) cross
    that network whole; copies in each slice (`dcn_data`) are summed over it in parts.

    Attributes:
      data: copies of the model.
      fsdp: devices that share one copy's parameters, each with batch rows of its own.
      tensor: devices that share the products of one row.
      dcn_data: slices along `data`; -1 takes the slices that the others leave.
      dcn_fsdp: slices along `fsdp`.
      dcn_tensor: slices along `tensor`.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    dcn_data: int = -1
    dcn_fsdp: int = 1
    dcn_tensor: int = 1

    def make(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over these devices, or all.

        Neighbours on a TPU's network are neighbours on the mesh. Slices are told by the devices; where these tell of
        one or none, the devices are taken in order, as many slices of equal size as the `dcn_` factors multiply to
        (with `dcn_data=-1`, one).

        Raises:
          ValueError: where the sizes do not multiply to the number of devices, or the factors to that of slices.
        """
        devices = list(jax.devices() if devices is None else devices)
        if self.dcn_data not in (-1, max(self.dcn_data, 1)) or min(self.dcn_fsdp, self.dcn_tensor) < 1:
            raise ValueError(
                "dcn factors are 1 or more, and dcn_data may be -1; got "
                f"dcn_data={self.dcn_data}, dcn_fsdp={self.dcn_fsdp}, dcn_tensor={self.dcn_tensor}"
            )
        slices = _slices(devices, max(self.dcn_data, 1) * self.dcn_fsdp * self.dcn_tensor)
        dcn = _filled((self.dcn_data, self.dcn_fsdp, self.dcn_tensor), len(slices))
        if dcn is None:
            asked = f"dcn_data={self.dcn_data}, dcn_fsdp={self.dcn_fsdp}, dcn_tensor={self.dcn_tensor}"
            raise ValueError(
                f"{asked} does not fit {len(devices)} devices in {len(slices)} slice(s): the factors must multiply to "
                "the number of slices, and dcn_data may be -1"
            )
        sizes = _filled((self.data, self.fsdp, self.tensor), len(slices[0]))
        if sizes is None:
            asked = f"data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}"
            where = f" in each of {len(slices)} slices" if len(slices) > 1 else ""
            raise ValueError(
                f"a mesh of {asked} does not fit {len(slices[0])} devices{where}:"
                " the sizes must multiply to that number, and one of them may be -1"
            )
        grid = np.array(slices, dtype=object).reshape(*dcn, *sizes)
        grid = grid.transpose(0, 3, 1, 4, 2, 5)  # an axis: over slices first, then within one
        return Mesh(grid.reshape([d * s for d, s in zip(dcn, sizes, strict=True)]), AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, batch: int, microbatches: int = 1) -> list[int]:
    """The rows of a global batch that this process's devices own, rising.

    Raises:
      ValueError: where the batch does not divide over the mesh, or a device's rows not into microbatches.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch % (ways * microbatches):
        parts = f" and {microbatches} microbatches" if microbatches > 1 else ""
        raise ValueError(
            f"a batch of {batch} does not divide over {ways} devices (data x fsdp){parts}: use a multiple of "
            f"{ways * microbatches}"
        )
    owned = batch_sharding(mesh).addressable_devices_indices_map((batch,))
    return sorted({row for index in owned.values() if index for row in range(*index[0].indices(batch))})


def shardings(abstract: PyTree, mesh: Mesh) -> PyTree:
    """A sharding for every leaf of an abstract tree whose parameters still carry their axis names."""

    def one(leaf: Any) -> NamedSharding:
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        return NamedSharding(mesh, placed(names, unboxed(leaf).shape, dict(mesh.shape)))

    with nn.logical_axis_rules(list(RULES.items())):
        return jax.tree.map(one, abstract, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata))


def abstract(boxed: PyTree, mesh: Mesh) -> PyTree:
    """Shapes, dtypes and shardings on a mesh, of an abstract tree whose parameters still carry their axis names."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        unboxed(boxed),
        shardings(boxed, mesh),
    )


def unboxed(tree: PyTree) -> PyTree:
    """The tree without axis names."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata),
    )


@contextlib.contextmanager
def applied(mesh: Mesh) -> Iterator[None]:
    """While tracing inside, activations and products with weights are held to the mesh by `RULES`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(RULES.items())), network_lines(network_lines_of(mesh)):
        yield


def network_lines_of(mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """Mesh axis -> lengths of the lines of the devices' network along it, major first; the whole axis without one."""
    return {axis: _lines(mesh, place) for place, axis in enumerate(mesh.axis_names)}


def _slices(devices: list[Any], asked: int) -> list[list[Any]]:
    """The devices by slice, in each slice row by row of its network."""
    numbers = sorted({getattr(device, "slice_index", 0) for device in devices})
    if len(numbers) > 1:
        parts = [[device for device in devices if device.slice_index == number] for number in numbers]
        if len({len(part) for part in parts}) > 1:
            raise ValueError(
                f"slices must be of one size; these have {', '.join(str(len(part)) for part in parts)} devices"
            )
    else:
        count = asked if len(devices) % asked == 0 else 1
        size = len(devices) // count
        parts = [devices[start : start + size] for start in range(0, len(devices), size)]
    return [sorted(part, key=_coordinates) if _coordinates(part[0]) else part for part in parts]


def _coordinates(device: Any) -> tuple[int, ...]:
    """A TPU's place on its network, major first; nothing for other devices, of which GPUs have numbers of that name."""
    return (*reversed(device.coords), device.core_on_chip) if hasattr(device, "core_on_chip") else ()


def _filled(asked: Sequence[int], count: int) -> list[int] | None:
    """The sizes with -1 replaced, if they multiply to `count`."""
    sizes = list(asked)
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    return sizes if math.prod(sizes) == count and min(sizes) > 0 else None


def _lines(mesh: Mesh, place: int) -> tuple[int, ...]:
    devices = np.moveaxis(mesh.devices, place, 0).reshape(mesh.devices.shape[place], -1)[:, 0]
    places = [(getattr(device, "slice_index", 0), *_coordinates(device)) for device in devices]
    values = [sorted(set(column)) for column in zip(*places, strict=True)]
    lines = tuple(len(column) for column in values if len(column) > 1)
    ordered = places == list(itertools.product(*values))
    return lines if ordered and lines else (len(places),)

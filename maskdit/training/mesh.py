"""The device mesh, and which axis of an array lies on which axis of the mesh.

Parameters carry logical axis names; `RULES` maps names to mesh axes. Arrays without names follow a fallback rule: the
largest axis that divides is cut over `fsdp` if the array is large. Batches are cut over `data` and `fsdp` together.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maskdit.contracts import PyTree

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
RULES = {
    "batch": BATCH_AXES,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "cond": "tensor",
    "vocab": "tensor",
}
LARGE = 2**20
"""Elements from which an array without axis names is cut."""


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes; -1, at most once, takes the devices that the others leave.

    Attributes:
      data: copies of the model.
      fsdp: devices that share one copy's parameters, each with batch rows of its own.
      tensor: devices that share the products of one row.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def make(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over these devices, or all.

        Raises:
          ValueError: where the sizes do not multiply to the number of devices.
        """
        devices = list(jax.devices() if devices is None else devices)
        sizes = [self.data, self.fsdp, self.tensor]
        known = math.prod(size for size in sizes if size != -1)
        if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
            sizes[sizes.index(-1)] = len(devices) // known
        if math.prod(sizes) != len(devices) or min(sizes) < 1:
            asked = f"data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}"
            raise ValueError(
                f"a mesh of {asked} does not fit {len(devices)} devices:"
                " the sizes must multiply to that number, and one of them may be -1"
            )
        return Mesh(np.array(devices).reshape(sizes), AXES)


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
        shape = unboxed(leaf).shape
        return NamedSharding(mesh, _named(names, shape, mesh) if any(names) else _fallback(shape, mesh))

    return jax.tree.map(one, abstract, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata))


def unboxed(tree: PyTree) -> PyTree:
    """The tree without axis names."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata),
    )


@contextlib.contextmanager
def applied(mesh: Mesh) -> Iterator[None]:
    """While tracing inside, activations are held to the mesh by `RULES`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(RULES.items())):
        yield


def _named(names: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    entries: list[str | None] = []
    for name, size in zip(names, shape, strict=True):
        axis = RULES.get(name) if name else None
        free = isinstance(axis, str) and axis not in entries and size % mesh.shape[axis] == 0
        entries.append(axis if free else None)  # type: ignore[arg-type]
    return PartitionSpec(*entries)


def _fallback(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    if math.prod(shape) < LARGE:
        return PartitionSpec()
    divisible = [axis for axis, size in enumerate(shape) if size % mesh.shape["fsdp"] == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))

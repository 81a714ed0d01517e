"""Host arrays on the devices of a mesh, which several processes may share, and back."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maskdit.contracts import PyTree
from maskdit.training.mesh import applied, batch_sharding, replicated


def spread(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Host arrays, the same on every process, as arrays on the devices of all; arrays that lie there stay as they are.

    Args:
      tree: of arrays.
      sharding: of all of them.
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == sharding.device_set:
            return leaf
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(one, tree)


def own_rows(batch: Mapping[str, Any], size: int, sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """The arrays of a global batch, of which each process gives the rows that its devices own.

    Args:
      batch: what a loader made: arrays of these rows, and `replaced`, which stays on the host.
      size: rows of the global batch.
      sharding: of rows.
    """
    with jax.transfer_guard_host_to_device("allow"):  # JAX takes this one for an implicit transfer
        return {
            name: jax.make_array_from_process_local_data(sharding, value, (size, *value.shape[1:]))
            for name, value in batch.items()
            if name != "replaced"
        }


def by_rows(program: Callable[..., PyTree], devices: Mesh, variables: PyTree, rows: PyTree) -> PyTree:
    """Runs `program(variables, rows)` with the rows cut over the mesh, once.

    Args:
      program: jitted, a result for each row.
      devices: the mesh.
      variables: arrays on the mesh, or host arrays, which are copied to each of its devices.
      rows: host arrays `[B, ...]`, all rows on every process; the last is repeated until they divide over the mesh.

    Returns:
      Host arrays `[B, ...]`, whole on every process.
    """
    count = len(jax.tree.leaves(rows)[0])
    full = -(-count // ways(devices)) * ways(devices)
    padded = jax.tree.map(lambda a: np.asarray(a)[np.minimum(np.arange(full), count - 1)], rows)
    with applied(devices):
        made = program(spread(variables, replicated(devices)), spread(padded, batch_sharding(devices)))
        whole = _copied(devices)(made)
    return jax.tree.map(lambda a: a[:count], jax.device_get(whole))


def parts(rows: PyTree, batch: int, devices: Mesh) -> Iterator[PyTree]:
    """Rows `[N, ...]` in batches of one size that occupies all devices alike, the last filled up with the last row.

    Args:
      rows: host arrays.
      batch: rows of a batch, if there are as many; rounded up to what divides over the mesh.
      devices: the mesh.
    """
    count = len(jax.tree.leaves(rows)[0])
    batch = -(-min(batch, count) // ways(devices)) * ways(devices)
    for start in range(0, count, batch):
        taken = np.minimum(np.arange(start, start + batch), count - 1)
        yield jax.tree.map(lambda a, taken=taken: np.asarray(a)[taken], rows)


def ways(devices: Mesh) -> int:
    """Parts into which a mesh cuts a batch."""
    return devices.shape["data"] * devices.shape["fsdp"]


@functools.cache
def _copied(devices: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=replicated(devices))

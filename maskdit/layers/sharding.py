"""Arrays on a mesh: which axis lies where, and products with weights that are cut over devices.

Logical axis names become mesh axes by the rules that are in force (`flax.linen.logical_axis_rules`, set with the mesh
by `maskdit.training.mesh.applied`). Where a weight is cut over devices that also share the batch (fully sharded data
parallelism: ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054; FSDP), each device gathers the weight, works on its rows,
and keeps its part of the summed gradient.

Left to itself, XLA sums that gradient on every device and drops most of it. A TPU compiler turns the sum into a true
reduce-scatter only where the devices form one line of its network, so `product` scatters line by line: half of the
bytes of a sum.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Array = jax.Array
Names = Sequence[str | None]
LARGE = 2**20
"""Elements from which an array is cut over `fsdp` although none of its names says so."""
_lines: contextvars.ContextVar[Mapping[str, tuple[int, ...]] | None] = contextvars.ContextVar(
    "maskdit_lines", default=None
)
_again: contextvars.ContextVar[bool] = contextvars.ContextVar("maskdit_gather_again", default=False)


@contextlib.contextmanager
def gathering(again: bool) -> Iterator[None]:
    """While tracing inside, weights that were gathered are kept for the backward pass, or gathered again (FSDP)."""
    token = _again.set(again)
    try:
        yield
    finally:
        _again.reset(token)


@contextlib.contextmanager
def network_lines(lines: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """While tracing inside, reductions over a mesh axis go through these lines of the devices' network in turn.

    Args:
      lines: mesh axis -> lengths of the lines, whose product is the axis's size; major first.
    """
    token = _lines.set(lines)
    try:
        yield
    finally:
        _lines.reset(token)


def placed(names: Names, shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """Where the axes of an array lie on a mesh, by the rules in force.

    An axis whose size does not divide stays whole; so does the second of two that ask for one mesh axis. A large array
    that no name cuts over `fsdp` has its largest free axis that divides cut there.

    Args:
      names: a logical name, or None, for each axis of the array; none at all for an array without names.
      shape: of the array.
      sizes: mesh axis -> devices along it.
    """
    rules = dict(nn.get_logical_axis_rules())
    entries: list[str | None] = [None] * len(shape)
    for place, name in enumerate(names):
        axis = rules.get(name) if name else None
        if isinstance(axis, str) and axis not in entries and shape[place] % sizes[axis] == 0:
            entries[place] = axis
    ways = sizes.get("fsdp", 1)
    if "fsdp" not in entries and ways > 1 and math.prod(shape) >= LARGE:
        free = [place for place, entry in enumerate(entries) if entry is None and shape[place] % ways == 0]
        if free:
            entries[max(free, key=lambda place: shape[place])] = "fsdp"
    return PartitionSpec(*entries)


def batch_axes() -> tuple[str, ...]:
    """The mesh axes over which the rows of a batch are cut, by the mesh and the rules in force; none without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = dict(nn.get_logical_axis_rules()).get("batch") or ()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    return tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes) if axis in free)


def hold_rows(x: Array) -> Array:
    """Holds an array `[B, ...]` to the batch axes, its other axes whole (no effect without a mesh and rules)."""
    return nn.with_logical_constraint(x, ("batch", *(None,) * (x.ndim - 1)))


def cut_across(kernel: Array, axes: Names) -> bool:
    """Whether a weight's last axis is cut over devices that share rows (tensor parallelism)."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    axis = placed(axes, kernel.shape, sizes)[-1] if sizes else None
    return axis is not None and axis not in batch_axes() and sizes[axis] > 1


def device_count() -> int:
    """Devices of the mesh in force; 1 without one."""
    return math.prod(jax.sharding.get_abstract_mesh().shape.values())


def scattered(x: Array, kernel: Array, axes: Names) -> bool:
    """Whether a product with a weight is one of `product`'s: the weight is cut over devices that share the batch.

    Not where the rows are few, as of a condition: there XLA gathers the rows and leaves the weight where it is.
    """
    rows = batch_axes()
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    ways = math.prod(sizes[axis] for axis in rows)
    cut = {axis for axis in placed(axes, kernel.shape, sizes) if axis in rows and sizes[axis] > 1}
    if not cut or x.ndim < 2 or x.shape[0] % ways:
        return False
    inner, outer = kernel.shape[0], math.prod(kernel.shape[1:])
    return math.prod(x.shape[:-1]) * (inner + outer) >= inner * outer


def product(x: Array, kernel: Array, axes: Names) -> Array:
    """`x [B, ..., in] @ kernel [in, ...out]` for a weight that is cut over devices, its gradient scattered.

    The weight is gathered first, and kept for the backward pass; inside `gathering(again=True)` gathers are left to
    XLA, which makes one for each use.

    Args:
      x: rows, cut over the batch axes.
      kernel: the weight, cut as `placed` says; its output may have one axis or two.
      axes: the weight's logical names.
    """
    return _product(x, kernel, tuple(axes), _again.get())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, kernel: Array, axes: tuple[str | None, ...], again: bool) -> Array:
    return applied(x, kernel if again else _whole(kernel, axes))


def _product_forward(
    x: Array, kernel: Array, axes: tuple[str | None, ...], again: bool
) -> tuple[Array, tuple[Array, Array]]:
    kernel = kernel if again else _whole(kernel, axes)
    return applied(x, kernel), (x, kernel)


def _product_backward(
    axes: tuple[str | None, ...], again: bool, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    return _applied_back(g, kernel), _kernel_gradient(x, g, axes)


_product.defvjp(_product_forward, _product_backward)


def applied(x: Array, kernel: Array) -> Array:
    """`x [..., in] @ kernel [in, ...out]`, whose output has one axis or two."""
    return x @ kernel if kernel.ndim == 2 else jnp.einsum("...i,ipo->...po", x, kernel)


def _applied_back(g: Array, kernel: Array) -> Array:
    return g @ kernel.T if kernel.ndim == 2 else jnp.einsum("...po,ipo->...i", g, kernel)


def _whole(kernel: Array, axes: Names) -> Array:
    """The weight gathered over the batch's devices; a cut over others (`tensor`) stays."""
    spec = placed(axes, kernel.shape, dict(jax.sharding.get_abstract_mesh().shape))
    rows = batch_axes()
    return jax.lax.with_sharding_constraint(kernel, PartitionSpec(*(None if a in rows else a for a in spec)))


def _kernel_gradient(x: Array, g: Array, axes: Names) -> Array:
    """`x^T g` summed over all rows, `[in, ...out]`, each device with its part."""
    mesh, rows = jax.sharding.get_abstract_mesh(), batch_axes()
    output = g.shape[x.ndim - 1 :]
    spec = placed(axes, (x.shape[-1], *output), dict(mesh.shape))
    inner, outer = (None if axis in rows else axis for axis in (spec[0], spec[-1]))

    def local(x: Array, g: Array) -> Array:
        flat = x.reshape(-1, x.shape[-1]), g.reshape(-1, *g.shape[x.ndim - 1 :])
        total = flat[0].T @ flat[1] if len(output) == 1 else jnp.einsum("ri,rpo->ipo", *flat)
        for place, axis in enumerate(spec):
            if axis in rows and mesh.shape[axis] > 1:
                total = _scatter(total, axis, place, mesh.shape[axis])
        left = tuple(axis for axis in rows if axis not in spec and mesh.shape[axis] > 1)
        return jax.lax.psum(total, left) if left else total

    def cut(array: Array, last: str | None) -> PartitionSpec:
        return PartitionSpec(rows, *(None,) * (array.ndim - 2), last)

    scatter = jax.shard_map(local, in_specs=(cut(x, inner), cut(g, outer)), out_specs=spec, check_vma=False)
    return scatter(x, g)


def _scatter(total: Array, axis: str, place: int, size: int) -> Array:
    """Sums over a mesh axis, line by line of the network; each device keeps its block of array axis `place`."""
    lines = (_lines.get() or {}).get(axis, (size,))
    after = size
    for length in lines:
        after //= length
        groups = [
            [block * length * after + step * after + rest for step in range(length)]
            for block in range(size // (length * after))
            for rest in range(after)
        ]
        total = jax.lax.psum_scatter(
            total, axis, scatter_dimension=place, tiled=True, axis_index_groups=groups if length < size else None
        )
    return total

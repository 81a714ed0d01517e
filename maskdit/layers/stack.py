"""Runs the blocks of a network: unrolled, or equal neighbours under one `lax.scan`.

Parameters are always stored per block (`blocks_0`, `blocks_1`, ...), so a checkpoint serves both ways of running. The
scan compiles one block instead of all of them; unrolled is faster on a CPU, and lets interceptors see every block by
its path.
"""

import dataclasses
import itertools
from collections.abc import Sequence, Set
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from maskdit.layers.sharding import gathering, hold_rows

Array = jax.Array

REMAT = {
    "none": None,
    "weights": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots_all": jax.checkpoint_policies.dots_saveable,
}
"""What a block keeps for the backward pass: everything; everything but the weights that were gathered from other
devices, which are gathered again (FSDP); its input alone; products with weights; all products."""


def run_stack(
    blocks: Sequence[nn.Module],
    x: Array,
    *args: Any,
    scan: bool,
    remat: str,
    dtype: str = "float32",
    taps: Set[str] = frozenset(),
    each: Any = None,
) -> tuple[Array, dict[str, Array]]:
    """Runs `x, inner = block(x, *args)` over named blocks of one parent; to be called inside its `compact` method.

    Args:
      blocks: linen modules with names; neighbours with equal fields form a segment that can be scanned.
      x: input of the first block, of the shape of every block's output.
      args: arrays given to every block.
      scan: whether segments are scanned; results are equal.
      remat: a name of `REMAT`.
      dtype: dtype to which stacked parameters are cast (the blocks' compute dtype), before they are gathered.
      taps: inner values to return: `NAME` (the block's output) or `NAME.KEY` (its `inner[KEY]`), which cut a segment.
      each: a tree of arrays with one entry per block along their first axis, such as a draw; a block gets its entry
        after `args`. None for nothing.

    Returns:
      The output of the last block, and the taps.

    Raises:
      ValueError: for an unknown remat policy.
    """
    if remat not in REMAT:
        raise ValueError(f"there is no remat policy '{remat}': use one of {tuple(REMAT)}")
    tapped = {name.split(".")[0] for name in taps}
    found: dict[str, Array] = {}
    x, place = hold_rows(x), 0
    with gathering(again=remat == "weights"):
        for _, group in itertools.groupby(blocks, key=lambda block: _kind(block, tapped)):
            segment = list(group)
            if scan and len(segment) > 1 and not segment[0].is_initializing():
                x = _scanned(segment, x, args, _entries(each, slice(place, place + len(segment))), remat, dtype)
                place += len(segment)
                continue
            for block in segment:
                own = () if each is None else (_entries(each, place),)
                x, inner = _one(block, x, (*args, *own), remat, block.name in tapped)
                place += 1
                values = {block.name: x} | {f"{block.name}.{key}": value for key, value in inner.items()}
                found |= {name: value for name, value in values.items() if name in taps}
    return x, found


def _entries(each: Any, place: int | slice) -> Any:
    return jax.tree.map(lambda array: array[place], each)


def _kind(block: nn.Module, tapped: Set[str]) -> Any:
    """Blocks of equal kind may be scanned together; a tapped block is of a kind of its own."""
    fields = {
        field.name: getattr(block, field.name)
        for field in dataclasses.fields(block)
        if field.name not in ("parent", "name")
    }
    return type(block), fields, block.name if block.name in tapped else None


def _one(block: nn.Module, x: Array, args: Any, remat: str, tapped: bool) -> tuple[Array, dict[str, Array]]:
    def call(module: nn.Module, x: Array, *args: Any) -> tuple[Array, dict[str, Array]]:
        x, inner = module(x, *args)
        return hold_rows(x), inner if tapped else {}

    if REMAT[remat] is not None:
        call = nn.remat(call, policy=REMAT[remat], prevent_cse=True)
    return call(block, x, *args)


def _scanned(segment: Sequence[nn.Module], x: Array, args: Any, each: Any, remat: str, dtype: str) -> Array:
    params = [meta.unbox(block.variables["params"]) for block in segment]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([leaf.astype(dtype) for leaf in leaves]), *params)
    pure = segment[0].clone(parent=None)

    def body(x: Array, entry: Any) -> tuple[Array, None]:
        params, own = entry
        x, _ = pure.apply({"params": params}, x, *args, *(() if each is None else (own,)))
        return hold_rows(x), None

    if REMAT[remat] is not None:
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
    return jax.lax.scan(body, x, (stacked, each))[0]

"""RAR: randomised autoregressive generation of image tokens (Yu et al. 2024, arXiv 2411.00776).

A causal transformer over `[cls, condition, code, code, ...]`. Each token also carries the place of the code that it has
to tell (section 3.3), so that codes can be told in any order; adaptive layer norm takes the condition and the number
of the token. Sampling keeps the keys and values of earlier tokens.

Parameters (kernels are `[in, out]`, that of `attn.qkv` `[in, 3, out]`): `cls_token`, `embed`, `positions`,
`target_positions`, `steps`, `blocks_i.{modulation, norm1, attn.{qkv, q_norm, k_norm, proj}, norm2, fc1, fc2}`,
`final_modulation` (scale, then shift), `head`. The rows of `embed` are the codes, the mask id, then of each label its
classes and the null class.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Cond, Draw, Layout, Prediction, PyTree, null_condition
from maskdit.layers.causal import CausalAttention, Memory
from maskdit.layers.dropout import block_draws, check_rate, drop_out, factors
from maskdit.layers.linear import Linear
from maskdit.layers.norm import layer_norm
from maskdit.layers.stack import run_stack
from maskdit.networks.dit import block_taps
from maskdit.networks.maskgit import check_ids

Array = jax.Array
_EPSILON = 1e-6
PREFIX = 2
"""Tokens before the codes: the class token and the condition."""
SIZES: dict[str, dict[str, int]] = {
    "B": {"width": 768, "depth": 24, "heads": 16, "hidden": 3072},
    "L": {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096},
    "XL": {"width": 1280, "depth": 32, "heads": 16, "hidden": 5120},
    "XXL": {"width": 1408, "depth": 40, "heads": 16, "hidden": 6144},
}
"""Table 1 of the paper."""
_SMALL = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """Pre-norm transformer block with adaLN-Zero of each token (section 3.2); the width is that of its input.

    Attributes:
      heads: attention heads.
      hidden: hidden width of the perceptron.
      dropout: share of the numbers inside and at the end of each branch that is dropped in training.
      attention_dropout: share of the attention weights that is.
      dtype: dtype of the products.
    """

    heads: int
    hidden: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Array, c: Array, draw: Draw | None = None, memory: Memory | None = None, place: Any = 0
    ) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, N, D]` under conditions `[B, N, D]`.

        Also returns `attn` and `mlp`, before their gates, and the keys and values `k` and `v`; for `memory` and `place`
        see `CausalAttention`. Draws: `weights`, `attn`, `hidden`, `mlp`; none without `draw`.
        """
        batch, count, width = x.shape
        joined = _modulation(6, width, self.dtype, "modulation")(nn.silu(c))  # 6 of [B, N, D]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = joined
        drop = factors((batch, self.heads, count, count), self.attention_dropout, draw, "weights")
        y = _modulate(layer_norm("norm1", _EPSILON)(x), shift_attn, scale_attn, self.dtype)
        attn, seen = CausalAttention(self.heads, self.dtype, name="attn")(y, drop, memory, place)
        attn = drop_out(attn, self.dropout, draw, "attn")
        x = x + gate_attn * attn
        y = _modulate(layer_norm("norm2", _EPSILON)(x), shift_mlp, scale_mlp, self.dtype)
        part: dict[str, Any] = {"dtype": self.dtype, "kernel_init": _SMALL}
        y = nn.gelu(Linear(self.hidden, axes=("embed", "mlp"), name="fc1", **part)(y), approximate=False)
        y = drop_out(y, self.dropout, draw, "hidden")
        mlp = drop_out(Linear(width, axes=("mlp", "embed"), name="fc2", **part)(y), self.dropout, draw, "mlp")
        return x + gate_mlp * mlp, {"attn": attn, "mlp": mlp, **seen}


class RAR(nn.Module):
    """Randomised autoregressive transformer over the codes of an image.

    Attributes:
      vocabulary: number of codes.
      grid: codes along each axis; the raster order is row by row.
      width, depth, heads, hidden: of the transformer, and the hidden width of its perceptrons; see `SIZES`.
      classes: label name -> number of classes; the embeddings of several are summed; empty for no condition.
      dropout: share of the numbers inside and at the end of each branch that is dropped in training.
      attention_dropout: share of the attention weights that is.
      spare_positions: rows of the two tables of places beyond the number of codes; two of them are used.
      spare_steps: rows of the table of steps beyond the number of codes; two of them are used.
      scan: whether blocks run under one `lax.scan` where no memory is kept: faster to compile; equal results.
      remat: what a block keeps for the backward pass, a name of `maskdit.layers.stack.REMAT`.
      dtype: dtype of tokens, memory and products; norms, softmax and the logits are float32.

    Raises:
      ValueError: for a dropout that is no share, and fewer spare rows than are used.
    """

    vocabulary: int
    grid: tuple[int, ...]
    width: int
    depth: int
    heads: int
    hidden: int
    classes: Mapping[str, int] = nn.FrozenDict()
    dropout: float = 0.0
    attention_dropout: float = 0.0
    spare_positions: int = 1024
    spare_steps: int = 100
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_rate("dropout", self.dropout)
        check_rate("attention_dropout", self.attention_dropout)
        if min(self.spare_positions, self.spare_steps) < PREFIX:
            raise ValueError(
                f"spare_positions={self.spare_positions} and spare_steps={self.spare_steps}: both are {PREFIX} or more"
            )
        super().__post_init__()

    @property
    def layout(self) -> Layout:
        """Its tokens: ids of a tokenizer."""
        return Layout(grid=tuple(self.grid), vocabulary=self.vocabulary)

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The names that `taps=` takes; `logits` are those of all places, `[B, K + 1, V]`."""
        return ("tokens", *block_taps("blocks", self.depth), "logits")

    def null(self, cond: Cond) -> Cond:
        """The condition with every label dropped."""
        return null_condition(cond, self.classes)

    def init_cache(self, rows: int) -> PyTree:
        """The empty memory: by block, keys and values `[rows, K + 2, H, d]`."""
        shape = (rows, self.layout.tokens + PREFIX, self.heads, self.width // self.heads)
        empty = jnp.zeros(shape, self.dtype)
        return {f"blocks_{i}": {"k": empty, "v": empty} for i in range(self.depth)}

    def macs(self, keep: int | None = None, *, fresh: int | None = None) -> int:
        """Multiply-adds of one example's forward pass; look-ups count nothing.

        Args:
          keep: not a part of this network: None.
          fresh: codes that a call with memory is given, 0 at the first, then 1; None for the pass over whole sequences.
        """
        del keep
        places = self.layout.tokens + PREFIX
        if fresh is None:
            return places * self._token_macs(places) + (places - 1) * self._head_macs()
        return (fresh or PREFIX) * self._token_macs(places) + self._head_macs()

    def _token_macs(self, keys: int) -> int:
        """Of one token in all blocks: products, modulation included, and attention over so many keys."""
        return self.depth * self.width * (10 * self.width + 2 * self.hidden + 2 * keys)

    def _head_macs(self) -> int:
        return self.width * (2 * self.width + self.vocabulary)

    @nn.compact
    def __call__(
        self,
        ids: Array,
        t: Array,
        cond: Cond,
        *,
        keep: Array | None = None,
        taps: Sequence[str] = (),
        draw: Draw | None = None,
        train: bool = False,
        orders: Array | None = None,
        cache: PyTree = None,
        place: Any = 0,
    ) -> Prediction:
        """Logits of the codes to come.

        Without `cache` all codes are given, and place j of the result tells the code at `orders[j]` from those before
        it in that order. With `cache` it is the logits `[B, 1, V]` of the next code in raster order.

        Args:
          ids: codes `[B, K]` in raster order, int32; with `cache` the codes told since the last call: none `[B, 0]`
            at the first, then one `[B, 1]`.
          t: part of the contract; not used.
          cond: labels `[B]` by name.
          keep: must be None: every token is processed.
          taps: inner values to return, of `tap_names`; not with `cache`.
          draw: for dropout: `blocks`, with a draw for each block, see `Block`.
          train: whether dropout is on.
          orders: `orders[b, j]` is the place of the code that is told j-th, `[B, K]`; None for raster order.
          cache: the memory, of `init_cache` or the last call.
          place: number of codes that the memory held before this call; may be traced.

        Raises:
          ValueError: for ids of another shape, labels of other names, `keep`, an unknown tap.
        """
        del t
        if keep is not None:
            raise ValueError("RAR processes every token: leave keep out (in a config task.masking=None)")
        tables = self._tables()
        label = self._condition(tables.embed, cond, ids.shape[0])  # [B, D]
        if cache is not None:
            return self._next(tables, ids, label, cache, place, taps)
        check_ids(ids, self.layout, taps, self.tap_names)
        x, c = self._sequence(tables, ids, label, orders)  # [B, K + 2, D], twice
        values = {"tokens": x}
        x, inner = run_stack(
            self._blocks(),
            x,
            c,
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            taps=frozenset(taps),
            each=block_draws(draw.named("blocks"), self.depth) if train and draw is not None else None,
        )
        logits = self._head(x[:, 1:], c[:, 1:])  # [B, K + 1, V]
        values |= inner | {"logits": logits}
        return Prediction(x=logits[:, :-1], taps={name: values[name] for name in taps})

    def _next(
        self, tables: "_Tables", ids: Array, label: Array, cache: PyTree, place: Any, taps: Sequence[str]
    ) -> Prediction:
        """The logits of the next code, and the memory with the tokens that were new."""
        if ids.ndim != 2 or ids.shape[1] > 1 or taps:
            given = f"got ids {ids.shape} and taps {tuple(taps)}"
            raise ValueError(f"with a cache RAR takes no code [B, 0] or one [B, 1], and no taps; {given}")
        first: Any = place + PREFIX if ids.shape[1] else 0  # place of the new tokens in the sequence
        tokens = jnp.take(tables.embed, ids, axis=0) if ids.shape[1] else tables.prefix(label)  # [B, 1 or 2, D]
        count = tokens.shape[1]
        places = tables.positions.at[1:-1].add(tables.targets)  # [K + 2, D]: the next code in raster order
        x = (tokens + jax.lax.dynamic_slice_in_dim(places, first, count)).astype(self.dtype)
        c = label[:, None] + jax.lax.dynamic_slice_in_dim(tables.steps, first, count)
        seen = {}
        for block in self._blocks():
            x, inner = block(x, c, memory=cache[block.name], place=first)
            seen[block.name] = {"k": inner["k"], "v": inner["v"]}
        return Prediction(x=self._head(x[:, -1:], c[:, -1:]), cache=seen)

    def _blocks(self) -> list[Block]:
        fields = (self.heads, self.hidden, self.dropout, self.attention_dropout, self.dtype)
        return [Block(*fields, name=f"blocks_{i}") for i in range(self.depth)]

    def _tables(self) -> "_Tables":
        """The learned tables, of rows that are used."""
        count, init = self.layout.tokens, nn.with_logical_partitioning(_SMALL, (None, "embed"))

        def table(name: str, rows: int, init: Any = init) -> Array:
            return self.param(name, init, (rows, self.width), jnp.float32)

        words = self.vocabulary + 1 + sum(classes + 1 for classes in self.classes.values())
        positions, targets = (
            table(name, count + self.spare_positions)[: count + PREFIX] for name in ("positions", "target_positions")
        )
        return _Tables(
            embed=table("embed", words, nn.with_logical_partitioning(_SMALL, ("vocab", "embed"))),
            first=table("cls_token", 1, nn.with_logical_partitioning(nn.initializers.zeros_init(), (None, "embed"))),
            positions=positions,
            targets=targets[PREFIX:],
            steps=table("steps", count + self.spare_steps)[: count + PREFIX],
        )

    def _condition(self, embed: Array, cond: Cond, batch: int) -> Array:
        """The sum of the labels' rows, `[B, D]` float32; without labels the row of the mask id."""
        if set(cond.labels) != set(self.classes):
            raise ValueError(
                f"the network is conditioned on the labels {sorted(self.classes)} but was given {sorted(cond.labels)}: "
                "pass exactly these"
            )
        if not self.classes:
            return jnp.broadcast_to(embed[self.vocabulary], (batch, self.width))
        start, total = self.vocabulary + 1, jnp.zeros((), jnp.float32)
        for name, count in self.classes.items():
            total = total + jnp.take(embed, start + jnp.clip(cond.labels[name], 0, count), axis=0)
            start += count + 1
        return total

    def _sequence(self, tables: "_Tables", ids: Array, label: Array, orders: Array | None) -> tuple[Array, Array]:
        """All tokens `[B, K + 2, D]` in the order in which they are told, and the condition of each."""
        if orders is None:
            orders = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        codes = jnp.take(tables.embed, jnp.take_along_axis(ids, orders, axis=1), axis=0)  # [B, K, D]
        x = jnp.concatenate([tables.prefix(label), codes], axis=1)
        x = x + tables.positions[jnp.pad(orders + PREFIX, ((0, 0), (PREFIX, 0))).at[:, 1].set(1)]
        x = x.at[:, 1:-1].add(tables.targets[orders])
        return x.astype(self.dtype), label[:, None] + tables.steps

    def _head(self, x: Array, c: Array) -> Array:
        """Logits `[B, N, V]`, float32."""
        scale, shift = _modulation(2, self.width, self.dtype, "final_modulation")(nn.silu(c))
        norm = nn.LayerNorm(
            _EPSILON, dtype=jnp.float32, use_bias=False, use_scale=False, use_fast_variance=False, name="norm_final"
        )
        y = _modulate(norm(x), shift, scale, self.dtype)
        head = Linear(self.vocabulary, dtype=self.dtype, axes=("embed", "vocab"), kernel_init=_SMALL, name="head")
        return head(y).astype(jnp.float32)


class _Tables(NamedTuple):
    """Learned rows: of ids and labels, the class token `[1, D]`, of places and steps `[K + 2, D]`, and of the places to
    tell `[K, D]`."""

    embed: Array
    first: Array
    positions: Array
    targets: Array
    steps: Array

    def prefix(self, label: Array) -> Array:
        """The tokens before the codes, `[B, 2, D]`."""
        return jnp.stack([jnp.broadcast_to(self.first[0], label.shape), label], axis=1)


def _modulation(parts: int, width: int, dtype: str, name: str) -> Linear:
    """Shifts, scales and gates; zero at the start, so that blocks start as the identity."""
    zeros = nn.initializers.zeros_init()
    return Linear(parts * width, dtype=dtype, axes=("embed", "cond"), parts=parts, kernel_init=zeros, name=name)


def _modulate(x: Array, shift: Array, scale: Array, dtype: str) -> Array:
    """`x * (1 + scale) + shift` in float32; all `[B, N, D]`."""
    return (x * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)).astype(dtype)

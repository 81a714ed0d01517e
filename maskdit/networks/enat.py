"""ENAT: visible tokens are encoded alone, mask tokens are decoded against them, and the features of an earlier step
are taken over (Ni et al. 2024, arXiv 2411.06959).

A mask token asks and gives nothing, so the deep part of the network sees visible tokens only and the masked ones go
through a few blocks whose keys and values they share with the finished visible features (section 4.1 of the paper).
Between steps most visible tokens stay: their features come from the step before through a small projection, and only
the tokens that have become visible since are encoded, with the old ones beside them as keys and values (section 4.2).

How many tokens are visible decides the shapes, so all rows of a batch have the same number of masks, and the caller
says how many.

Parameters: `words` (the last row is the mask), `places`, `norm_in`, `label_embed.LABEL`, `reuse.{norm, mlp}`,
`blocks_i` and `decoder_blocks_i`, each with `modulation`, `attn.{q, kv, context_kv, proj}` and `mlp`, `norm_out`,
`head.{fc, norm, bias}`.
"""

import functools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Cond, Draw, Layout, Prediction, null_condition
from maskdit.layers.attention import attention
from maskdit.layers.dropout import check_rate, drop_out
from maskdit.layers.embed import LabelEmbed
from maskdit.layers.linear import Linear, product
from maskdit.layers.mlp import Mlp
from maskdit.layers.modulate import gate_add, norm_modulate
from maskdit.layers.norm import layer_norm
from maskdit.layers.patch import gather_tokens
from maskdit.layers.sharding import hold_rows
from maskdit.layers.stack import run_stack
from maskdit.networks.maskgit import check_ids

Array = jax.Array
Cache = dict[str, Array]

SIZES: dict[str, dict[str, int]] = {"L": {"width": 1024, "depth": 22, "decoder_depth": 2, "heads": 16}}
"""The size whose weights are published: 574 million parameters."""
REUSE_RATIO = 4
"""Hidden width over width of the perceptron that old features pass through."""
_SMALL = nn.initializers.normal(0.02)


class ContextAttention(nn.Module):
    """Attention of tokens to a context and to themselves; the context has keys and values by a weight of its own.

    Attributes:
      heads: number of heads; the width of the input must divide by it.
      dtype: dtype of the products.
      backend: see `maskdit.layers.attention.attention`.
    """

    heads: int
    dtype: str = "float32"
    backend: str = "auto"

    @nn.compact
    def __call__(self, x: Array, context: Array | None) -> Array:
        """Maps tokens `[B, N, D]`, with a context `[B, M, D]` or None, to `[B, N, D]`."""
        batch, tokens, width = x.shape
        if width % self.heads:
            raise ValueError(f"a width of {width} does not divide into {self.heads} heads: change one of them")
        make = functools.partial(Linear, dtype=self.dtype, axes=("embed", "heads"))
        q = make(width, name="q")(x)
        k, v = make(2 * width, parts=2, name="kv")(x)  # [B, N, D] each
        if context is not None:
            before = make(2 * width, parts=2, name="context_kv")(context)
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(before, (k, v), strict=True))  # [B, M + N, D]
        q, k, v = (part.reshape(batch, -1, self.heads, width // self.heads) for part in (q, k, v))
        out = attention(q, k, v, backend=self.backend).reshape(batch, tokens, width)
        return Linear(width, dtype=self.dtype, axes=("heads", "embed"), name="proj")(out)


class Block(nn.Module):
    """Transformer block with adaLN-Zero whose tokens also attend to a context, which has a shift and scale of its own.

    Attributes:
      heads: attention heads.
      mlp_ratio: hidden width of the perceptron over the width.
      dtype: dtype of the products.
      attention: attention backend.
    """

    heads: int
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, c: Array, context: Array | None) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, N, D]` under a condition `[B, C]` and a context `[B, M, D]`, or None; taps it has none."""
        width = x.shape[-1]
        zeros = nn.initializers.zeros_init()  # blocks start as the identity
        modulation = Linear(8 * width, dtype=self.dtype, axes=("embed", "cond"), kernel_init=zeros, name="modulation")
        parts = jnp.split(hold_rows(modulation(nn.silu(c))), 8, axis=-1)  # 8 of [B, D]
        shift_attn, scale_attn, shift_context, scale_context, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts
        if context is not None:
            context = norm_modulate(context, shift_context, scale_context)
        attend = ContextAttention(self.heads, self.dtype, self.attention, name="attn")
        x = gate_add(x, attend(norm_modulate(x, shift_attn, scale_attn), context), gate_attn)
        mlp = Mlp(int(width * self.mlp_ratio), self.dtype, name="mlp")
        return gate_add(x, mlp(norm_modulate(x, shift_mlp, scale_mlp)), gate_mlp), {}


class Reuse(nn.Module):
    """Features of an earlier call on their way into this one: a perceptron with a residual (section 4.2).

    Attributes:
      dtype: dtype of the products.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps features `[B, N, D]` to `[B, N, D]`."""
        normed = layer_norm("norm", 1e-6)(x).astype(self.dtype)
        return x + Mlp(REUSE_RATIO * x.shape[-1], self.dtype, name="mlp")(normed)


class TiedHead(nn.Module):
    """Logits as products with the embeddings of the codes, which learn nothing from this use of them.

    Attributes:
      dtype: dtype of the products.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, words: Array) -> Array:
        """Tokens `[B, K, D]` and embeddings `[V + 1, D]`, the mask's last, to logits `[B, K, V]`, float32."""
        width, codes = x.shape[-1], len(words) - 1
        x = nn.gelu(Linear(width, dtype=self.dtype, axes=("embed", None), name="fc")(x), approximate=False)
        x = layer_norm("norm", 1e-5)(x).astype(self.dtype)
        table = jax.lax.stop_gradient(words)[:codes].astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (codes + 1,), jnp.float32)
        return product(x, table.T).astype(jnp.float32) + bias[:codes]


class ENAT(nn.Module):
    """Masked generator with an encoder of visible tokens, a decoder of masked ones, and a memory of features.

    Attributes:
      vocabulary: number of codes V; the id V is the mask.
      grid: tokens along each axis, row-major.
      width, depth, heads: of the encoder; see `SIZES`.
      decoder_depth: blocks of the decoder, of the same width and heads.
      mlp_ratio: hidden width of the blocks' perceptrons over the width.
      classes: label name -> number of classes; the embeddings of several are summed; empty for no condition.
      label_null: whether the tables have a row for the null label, whose id is the number of classes.
      dropout: share of the embedded tokens' channels that training drops.
      attention: attention backend, see `maskdit.layers.attention`.
      scan: whether blocks run under one `lax.scan`: faster to compile; the same parameters and results.
      remat: what a block keeps for the backward pass, a name of `maskdit.layers.stack.REMAT`.
      dtype: dtype of tokens and products; norms, softmax and logits are float32.

    Raises:
      ValueError: for a dropout that is no share.
    """

    vocabulary: int
    grid: tuple[int, ...]
    width: int
    depth: int
    heads: int
    decoder_depth: int = 2
    mlp_ratio: float = 4.0
    classes: Mapping[str, int] = nn.FrozenDict()
    label_null: bool = True
    dropout: float = 0.1
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_rate("dropout", self.dropout)
        super().__post_init__()

    @property
    def layout(self) -> Layout:
        """The grid of codes."""
        return Layout(grid=tuple(self.grid), vocabulary=self.vocabulary)

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The names that `taps=` takes: embedded tokens, and what comes before the last norm, `[B, K, D]` each."""
        return ("tokens", "features")

    def null(self, cond: Cond) -> Cond:
        """The condition with every label dropped.

        Raises:
          ValueError: where the network has no null label.
        """
        if self.classes and not self.label_null:
            raise ValueError("this network has no null label (label_null=False): train one with label_null=True")
        return null_condition(cond, self.classes)

    def init_cache(self, rows: int) -> Cache:
        """The memory before the first call, of so many rows, in which nothing is visible: see `__call__`."""
        count = self.layout.tokens
        return {
            "features": jnp.zeros((rows, count, self.width), self.dtype),
            "masked": jnp.ones((rows, count), bool),
        }

    def macs(self, keep: int | None = None, *, masked: int | None = None, fresh: int | None = None) -> int:
        """Multiply-adds of one example's forward pass; embedding look-ups count nothing.

        Args:
          keep: not a part of this network: None.
          masked: number of masked tokens; None for all of them.
          fresh: as for `__call__`.

        Raises:
          ValueError: for counts that do not fit, and for `keep`.
        """
        count, width = self.layout.tokens, self.width
        masked = count if masked is None else masked
        old, new = self._counts(keep, masked, fresh)
        total = old * 2 * REUSE_RATIO * width**2 + count * width * (width + self.vocabulary)
        if new:
            total += self.depth * self._block_macs(new, old)
        if masked:
            total += self.decoder_depth * self._block_macs(masked, old + new)
        return total

    def _block_macs(self, tokens: int, context: int) -> int:
        """Multiply-adds of a block on so many tokens of one example, with a context, modulation included."""
        width = self.width
        weights = 4 * width**2 + 2 * int(width * self.mlp_ratio) * width
        products = tokens * weights + context * 2 * width**2 + 8 * width**2
        return products + 2 * tokens * (tokens + context) * width

    def _counts(self, keep: object, masked: int, fresh: int | None) -> tuple[int, int]:
        """How many visible tokens are taken over from an earlier call, and how many are encoded."""
        count = self.layout.tokens
        if keep is not None:
            raise ValueError("ENAT takes no `keep`: its encoder leaves out the masked tokens by itself; leave it None")
        if not 0 <= masked <= count:
            raise ValueError(f"masked={masked} tokens of {count}: give a number from 0 to {count}")
        visible = count - masked
        if fresh is None:
            return 0, visible
        if not 0 <= fresh <= visible:
            raise ValueError(f"fresh={fresh} of {visible} visible tokens: give a number from 0 to {visible}")
        return visible - fresh, fresh

    @nn.compact
    def __call__(
        self,
        ids: Array,
        t: Array,
        cond: Cond,
        *,
        masked: int | None = None,
        fresh: int | None = None,
        cache: Cache | None = None,
        keep: Array | None = None,
        taps: Sequence[str] = (),
        draw: Draw | None = None,
        train: bool = False,
    ) -> Prediction:
        """Predicts the codes of all places from those that are visible.

        Args:
          ids: `[B, K]`, masks among them.
          t: part of the contract; the number of masks tells the network where it is.
          cond: labels `[B]` by name.
          masked: number of masks in every row; needed, and not checked against the ids.
          fresh: how many of a row's visible tokens were still masked in the call that made `cache`; the features of
            the others are taken over, without a gradient. All masks of now were masks then. None for no reuse.
          cache: what that call returned: `features` `[B, K, D]` and `masked` `[B, K]`; without `fresh` it is not read.
          keep: not a part of this network: None.
          taps: inner values to return, of `tap_names`.
          draw, train: dropout in training; draws `dropout`.

        Returns:
          Logits `[B, K, V]`, and in `cache` what the next call may take over.

        Raises:
          ValueError: for ids of another shape, labels of other names, counts that do not fit, reuse without a cache,
            `keep`, or an unknown tap.
        """
        del t
        check_ids(ids, self.layout, taps, self.tap_names)
        hidden, places, back = self._places(ids, keep, masked, fresh, cache)
        words = self.param("words", nn.with_logical_partitioning(_SMALL, ("vocab", "embed")), self._table, jnp.float32)
        tokens = self._embed(ids, words, draw if train else None)  # [B, K, D]
        c = jnp.zeros((len(ids), self.width))
        if self.classes:
            c = LabelEmbed(self.classes, self.width, self.label_null, name="label_embed")(cond.labels)

        features = gather_tokens(self._features(tokens, c, places, cache), back)  # [B, K, D]
        normed = layer_norm("norm_out", 1e-5)(features).astype(self.dtype)
        values = {"tokens": tokens, "features": features}
        return Prediction(
            x=TiedHead(self.dtype, name="head")(normed, words),
            taps={name: values[name] for name in taps},
            cache={"features": features, "masked": hidden},
        )

    @property
    def _table(self) -> tuple[int, int]:
        return self.vocabulary + 1, self.width

    def _embed(self, ids: Array, words: Array, draw: Draw | None) -> Array:
        places = self.param(
            "places", nn.with_logical_partitioning(_SMALL, (None, "embed")), (self.layout.tokens, self.width)
        )
        tokens = layer_norm("norm_in", 1e-6)(jnp.take(words, ids, axis=0, mode="clip") + places)
        return drop_out(tokens, self.dropout, draw, "dropout").astype(self.dtype)

    def _places(
        self, ids: Array, keep: Array | None, masked: int | None, fresh: int | None, cache: Cache | None
    ) -> tuple[Array, list[Array], Array]:
        """Which ids are masks; the places of tokens taken over, encoded and decoded, `[B, n]` each; and, of every
        place, where its token is in the row of the three."""
        hidden = ids == self.vocabulary
        if self.is_initializing():  # every part runs on every token, so that all parameters are made
            everything = jnp.broadcast_to(jnp.arange(self.layout.tokens), ids.shape)
            return hidden, [everything] * 3, everything
        if masked is None:
            raise ValueError(
                "ENAT needs `masked`, the number of masks in every row: train it with counts of whole batches "
                "(Masked(counts=BatchCounts(...))) and sample with counted=True, least=0"
            )
        if fresh is not None and cache is None:
            raise ValueError(f"fresh={fresh} without the cache of an earlier call: give both, or neither")
        old, new = self._counts(keep, masked, fresh)
        group = jnp.where(hidden, 2, 1)
        if fresh is not None and cache is not None:
            group = jnp.where(hidden | cache["masked"], group, 0)
        order = jnp.argsort(group, axis=1, stable=True)  # [B, K]
        return hidden, jnp.split(order, [old, old + new], axis=1), jnp.argsort(order, axis=1)

    def _features(self, tokens: Array, c: Array, places: list[Array], cache: Cache | None) -> Array:
        """Features of the tokens taken over, encoded and decoded, one after the other: `[B, K, D]`."""
        old, new, rest = places
        found = []
        if old.shape[1]:
            features = tokens if cache is None else jax.lax.stop_gradient(cache["features"]).astype(self.dtype)
            found.append(Reuse(self.dtype, name="reuse")(gather_tokens(features, old)))
        if new.shape[1]:
            encoded = self._stack("blocks", self.depth, gather_tokens(tokens, new), c, found[0] if found else None)
            found.append(encoded)
        if rest.shape[1]:
            context = jnp.concatenate(found, axis=1) if found else None  # [B, K - masked, D]
            found.append(self._stack("decoder_blocks", self.decoder_depth, gather_tokens(tokens, rest), c, context))
        return jnp.concatenate(found, axis=1)

    def _stack(self, name: str, depth: int, tokens: Array, c: Array, context: Array | None) -> Array:
        make = functools.partial(Block, self.heads, self.mlp_ratio, self.dtype, self.attention)
        blocks = [make(name=f"{name}_{i}") for i in range(depth)]
        return run_stack(blocks, tokens, c, context, scan=self.scan, remat=self.remat, dtype=self.dtype)[0]

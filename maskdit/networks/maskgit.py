"""A bidirectional transformer over the tokens of an image, some of which are masked: BERT as TiTok generates with it.

MaskGIT (Chang et al. 2022, arXiv 2202.04200) fills in masked tokens with the transformer of BERT (Devlin et al. 2019,
arXiv 1810.04805): learned places, norms after each branch. This is TiTok's form of it (`ImageBert`, Yu et al. 2024,
arXiv 2406.07550). MaskGIT's own differs in these: its GELU is the tanh form; there are no segment embeddings; before
the logits stand one more product, GELU and norm; and the logits are products with the embeddings themselves plus a
bias, for masks and classes too.

Parameters (kernels are `[in, out]`, that of `attn.qkv` `[in, 3, out]`): `embed.{tokens, positions}`; `segments`, one
row for each of BERT's two kinds of sentence (all tokens are of the first); `norm`; `blocks_i.{attn.qkv, attn.proj,
norm1, fc1, fc2, norm2}`; `head`.
"""

import functools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Layout, Prediction, null_condition
from maskdit.layers.attention import SelfAttention
from maskdit.layers.dropout import block_draws, check_rate, drop_out, factors
from maskdit.layers.linear import Linear
from maskdit.layers.norm import layer_norm
from maskdit.layers.patch import gather_tokens, removed, scatter_tokens
from maskdit.layers.stack import run_stack
from maskdit.networks.dit import block_taps, check_call

SIZES: dict[str, dict[str, int]] = {
    "titok": {"width": 768, "depth": 24, "heads": 16, "hidden": 3072},
    "maskgit": {"width": 768, "depth": 24, "heads": 8, "hidden": 3072},
}
"""TiTok's for 32 and 64 tokens; MaskGIT's own for a grid of 16 x 16."""
EPSILON = 1e-12
"""Of BERT's norms."""
INIT = nn.initializers.normal(0.02)


class PostNormBlock(nn.Module):
    """BERT's transformer block: a norm after each branch, and the exact GELU; the width is that of its input.

    Attributes:
      heads: attention heads.
      hidden: hidden width of the perceptron.
      dropout: share of each branch's output that is dropped in training.
      attention_dropout: share of the attention weights that is.
      dtype: dtype of the products and of what comes out.
      attention: attention backend.
    """

    heads: int
    hidden: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: str = "float32"
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, draw: Draw | None = None) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, N, D]` to the same shape; also returns `attn` and `mlp`, what the branches add.

        Draws: `weights`, `attn`, `mlp`; none without `draw`.
        """
        batch, count, width = x.shape
        drop = factors((batch, self.heads, count, count), self.attention_dropout, draw, "weights")
        attend = SelfAttention(self.heads, self.dtype, self.attention, kernel_init=INIT, name="attn")
        attn = drop_out(attend(x, drop), self.dropout, draw, "attn")
        x = layer_norm("norm1", EPSILON)(x + attn).astype(self.dtype)
        inner = Linear(self.hidden, dtype=self.dtype, axes=("embed", "mlp"), kernel_init=INIT, name="fc1")(x)
        inner = nn.gelu(inner, approximate=False)
        mlp = Linear(width, dtype=self.dtype, axes=("mlp", "embed"), kernel_init=INIT, name="fc2")(inner)
        mlp = drop_out(mlp, self.dropout, draw, "mlp")
        return layer_norm("norm2", EPSILON)(x + mlp).astype(self.dtype), {"attn": attn, "mlp": mlp}


class MaskGIT(nn.Module):
    """Post-norm transformer that predicts every token of an image from those that are visible.

    The labels' embeddings make one more token, which comes first and is left out of the prediction.

    Attributes:
      vocabulary: number of codes; the id of that number is the mask.
      grid: tokens along each axis, `(K,)` of a sequence.
      width, depth, heads: of the transformer.
      hidden: hidden width of the perceptrons; see `SIZES`.
      classes: label name -> number of classes; the embeddings of several are summed; empty for no condition.
      dropout: share of the embeddings and of each branch's output that is dropped in training.
      attention_dropout: share of the attention weights that is; attention then runs without a fused kernel.
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
    hidden: int
    classes: Mapping[str, int] = nn.FrozenDict()
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_rate("dropout", self.dropout)
        check_rate("attention_dropout", self.attention_dropout)
        super().__post_init__()

    @property
    def layout(self) -> Layout:
        """The tokens of the input."""
        return Layout(grid=tuple(self.grid), vocabulary=self.vocabulary)

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The names that `taps=` takes; their values have the condition's token first."""
        return ("tokens", *block_taps("blocks", self.depth))

    def null(self, cond: Cond) -> Cond:
        """The condition with every label dropped."""
        return null_condition(cond, self.classes)

    def macs(self, keep: int | None = None) -> int:
        """Multiply-adds of one example's forward pass with `keep` tokens, or all; embedding look-ups count nothing."""
        tokens, width = keep or self.layout.tokens, self.width
        return (
            self.depth * block_macs(tokens + bool(self.classes), width, self.hidden) + tokens * width * self.vocabulary
        )

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Cond,
        *,
        keep: Array | None = None,
        taps: Sequence[str] = (),
        draw: Draw | None = None,
        train: bool = False,
    ) -> Prediction:
        """Predicts all tokens.

        Args:
          x: ids `[B, K]`, int32; `vocabulary` where a token is masked.
          t: share of masked tokens; part of the contract, the network sees the masks themselves.
          cond: labels `[B]` by name.
          keep: places `[B, k]` of the tokens to process, in that order; logits elsewhere are zero and `aux["mask"]`
            `[B, K]` is 1 there. None for all.
          taps: inner values to return, of `tap_names`.
          draw: for dropout: `embed`, and `blocks` with a draw for each block, see `PostNormBlock`.
          train: whether dropout is on.

        Raises:
          ValueError: for ids of another shape or no integers, labels of other names, or an unknown tap.
        """
        del t
        check_ids(x, self.layout, taps, self.tap_names)
        draw = draw if train else None
        tokens = TokenEmbed(self.vocabulary, self.classes, self.width, name="embed")(x, cond.labels, keep)
        init = nn.with_logical_partitioning(INIT, (None, "embed"))
        segments = self.param("segments", init, (2, self.width), jnp.float32)
        tokens = layer_norm("norm", EPSILON)(tokens + segments[0]).astype(self.dtype)  # [B, 1 + k, D]
        values = {"tokens": drop_out(tokens, self.dropout, draw, "embed")}

        make = functools.partial(
            PostNormBlock, self.heads, self.hidden, self.dropout, self.attention_dropout, self.dtype, self.attention
        )
        tokens, inner = run_stack(
            [make(name=f"blocks_{i}") for i in range(self.depth)],
            values["tokens"],
            scan=self.scan,
            remat=self.remat,
            dtype=self.dtype,
            taps=frozenset(taps),
            each=None if draw is None else block_draws(draw.named("blocks"), self.depth),
        )
        values |= inner
        out, aux = logits(tokens, self.layout, bool(self.classes), keep, self.dtype)
        return Prediction(x=out, aux=aux, taps={name: values[name] for name in taps})


def block_macs(tokens: int, width: int, hidden: int) -> int:
    """Multiply-adds of a transformer block on one example."""
    return tokens * (4 * width + 2 * hidden) * width + 2 * tokens**2 * width


def check_ids(x: Array, layout: Layout, taps: Sequence[str], known: Sequence[str]) -> None:
    """Refuses ids of another shape, what are no ids, and unknown taps, when the call is traced."""
    check_call(x, layout, taps, known)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"the network takes ids of tokens, whole numbers up to {layout.vocabulary}, not {x.dtype}")


class TokenEmbed(nn.Module):
    """A token for the labels, where there are any, and the tokens of an image, each with its place.

    Parameters: `tokens` `[V + 1 + classes, D]`: codes, the mask, then each label's classes and its null label; and
    `positions`, the condition's place first.

    Attributes:
      vocabulary: number of codes.
      classes: label name -> number of classes.
      width: of a token.
    """

    vocabulary: int
    classes: Mapping[str, int]
    width: int

    @nn.compact
    def __call__(self, ids: Array, labels: Mapping[str, Array], keep: Array | None = None) -> Array:
        """Embeds ids `[B, K]`, and labels `[B]` by name: `[B, 1 + K, D]` float32; of the K only those of `keep`.

        Raises:
          ValueError: where the labels' names are not those of `classes`.
        """
        if set(labels) != set(self.classes):
            raise ValueError(
                f"the network is conditioned on the labels {sorted(self.classes)} but was given {sorted(labels)}: pass "
                "exactly these"
            )
        rows, ahead = sum(count + 1 for count in self.classes.values()), int(bool(self.classes))
        vocab, place = (nn.with_logical_partitioning(INIT, (name, "embed")) for name in ("vocab", None))
        table = self.param("tokens", vocab, (self.vocabulary + 1 + rows, self.width), jnp.float32)
        positions = self.param("positions", place, (ahead + ids.shape[1], self.width), jnp.float32)
        tokens = jnp.take(table, jnp.clip(ids, 0, self.vocabulary), axis=0) + positions[ahead:]  # [B, K, D]
        if keep is not None:
            tokens = gather_tokens(tokens, keep)  # [B, k, D]
        if not self.classes:
            return tokens
        label, first = positions[0], self.vocabulary + 1
        for name, count in self.classes.items():
            label = label + jnp.take(table, first + jnp.clip(labels[name], 0, count), axis=0)  # [B, D]
            first += count + 1
        return jnp.concatenate([label[:, None], tokens], axis=1)  # [B, 1 + K, D]


def logits(
    tokens: Array, layout: Layout, ahead: bool, keep: Array | None, dtype: str
) -> tuple[Array, dict[str, Array]]:
    """The product `head` from tokens `[B, N, D]` to logits `[B, K, V]`, float32; called in a `compact` method.

    Args:
      tokens: the condition's first, where `ahead` says so.
      layout: the network's tokens.
      ahead: whether there is one.
      keep: places `[B, k]` of the others; logits elsewhere are zero. None for all.
      dtype: of the product.

    Returns:
      The logits, and with `keep` `mask` `[B, K]`, 1 where a token was not processed.
    """
    head = Linear(layout.vocabulary, dtype=dtype, axes=("embed", "vocab"), kernel_init=INIT, name="head")
    out = head(tokens[:, int(ahead) :]).astype(jnp.float32)  # [B, k, V]
    if keep is None:
        return out, {}
    empty = jnp.zeros((len(out), layout.tokens, out.shape[-1]), jnp.float32)
    return scatter_tokens(out, keep, empty), {"mask": removed(keep, layout.tokens)}

"""TiTok's larger generator: the blocks of U-ViT over the tokens of an image, some of which are masked.

U-ViT (Bao et al. 2023, arXiv 2209.12152) joins the first half of its blocks with the second by long skips, last in
first out; MUSE-Pytorch, and TiTok after it (`UViTBert`, Yu et al. 2024, arXiv 2406.07550), predict masked tokens so.
Norms stand before each branch.

Parameters (kernels are `[in, out]`, that of `attn.qkv` `[in, 3, out]`): `embed.{tokens, positions}`; `in_blocks_i`,
`mid_block`, `out_blocks_i` with `norm1, attn.qkv, attn.proj, norm2, fc1, fc2`, and `skip` in the last; `norm`, `head`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Layout, Prediction, null_condition
from maskdit.layers.attention import SelfAttention
from maskdit.layers.dropout import check_rate, drop_out
from maskdit.layers.linear import Linear
from maskdit.layers.norm import layer_norm
from maskdit.layers.stack import run_stack
from maskdit.networks.dit import block_taps
from maskdit.networks.maskgit import TokenEmbed, block_macs, check_ids, logits

SIZES: dict[str, dict[str, int]] = {"titok": {"width": 1024, "depth": 20, "heads": 16, "hidden": 4096}}
"""TiTok's for 128 tokens."""
EPSILON = 1e-5
_INIT = nn.initializers.truncated_normal(0.02)


class UViTBlock(nn.Module):
    """A pre-norm transformer block with the exact GELU, and a skip from an earlier one before it.

    Attributes:
      heads: attention heads; queries, keys and values have no bias.
      hidden: hidden width of the perceptron.
      dropout: share of each branch's output, and of the perceptron's inner values, that is dropped in training.
      dtype: dtype of the products.
      attention: attention backend.
    """

    heads: int
    hidden: int
    dropout: float = 0.0
    dtype: str = "float32"
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, skip: Array | None = None, draw: Draw | None = None) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, N, D]`, and those of the skip, to `[B, N, D]`; also returns `attn` and `mlp`, what the
        branches add.

        Draws: `attn`, `inner`, `mlp`; none without `draw`.
        """
        width, part = x.shape[-1], {"dtype": self.dtype, "kernel_init": _INIT}
        linear: Any = functools.partial(Linear, **part)
        if skip is not None:
            x = linear(width, axes=(None, "embed"), name="skip")(jnp.concatenate([x, skip], axis=-1))
        attend = SelfAttention(self.heads, self.dtype, self.attention, qkv_bias=False, kernel_init=_INIT, name="attn")
        attn = drop_out(attend(layer_norm("norm1", EPSILON)(x)), self.dropout, draw, "attn")
        x = x + attn
        inner = linear(self.hidden, axes=("embed", "mlp"), name="fc1")(layer_norm("norm2", EPSILON)(x))
        inner = drop_out(nn.gelu(inner, approximate=False), self.dropout, draw, "inner")
        mlp = drop_out(linear(width, axes=("mlp", "embed"), name="fc2")(inner), self.dropout, draw, "mlp")
        return x + mlp, {"attn": attn, "mlp": mlp}


class UViTBert(nn.Module):
    """Pre-norm transformer with long skips that predicts every token of an image from those that are visible.

    The labels' embeddings make one more token, which comes first and is left out of the prediction.

    Attributes:
      vocabulary: number of codes; the id of that number is the mask.
      grid: tokens along each axis, `(K,)` of a sequence.
      width, heads: of the transformer.
      depth: blocks that skips join, an even number: half before the middle block, half after it.
      hidden: hidden width of the perceptrons; see `SIZES`.
      classes: label name -> number of classes; the embeddings of several are summed; empty for no condition.
      dropout: share of each branch's output, and of the perceptrons' inner values, that is dropped in training.
      attention: attention backend, see `maskdit.layers.attention`.
      remat: what a block keeps for the backward pass, a name of `maskdit.layers.stack.REMAT`.
      dtype: dtype of tokens and products; norms, softmax and logits are float32.

    Raises:
      ValueError: for an odd depth, or a dropout that is no share.
    """

    vocabulary: int
    grid: tuple[int, ...]
    width: int
    depth: int
    heads: int
    hidden: int
    classes: Mapping[str, int] = nn.FrozenDict()
    dropout: float = 0.0
    attention: str = "auto"
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_rate("dropout", self.dropout)
        if self.depth % 2:
            raise ValueError(
                f"a UViTBert of depth={self.depth}: skips join pairs of blocks, besides the one in the middle; give an "
                "even depth"
            )
        super().__post_init__()

    @property
    def layout(self) -> Layout:
        """The tokens of the input."""
        return Layout(grid=tuple(self.grid), vocabulary=self.vocabulary)

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The names that `taps=` takes; their values have the condition's token first."""
        half = self.depth // 2
        middle = ("mid_block.attn", "mid_block.mlp", "mid_block")
        return ("tokens", *block_taps("in_blocks", half), *middle, *block_taps("out_blocks", half), "norm")

    def null(self, cond: Cond) -> Cond:
        """The condition with every label dropped."""
        return null_condition(cond, self.classes)

    def macs(self, keep: int | None = None) -> int:
        """Multiply-adds of one example's forward pass with `keep` tokens, or all; embedding look-ups count nothing."""
        tokens, width = keep or self.layout.tokens, self.width
        count = tokens + bool(self.classes)
        skips = self.depth // 2 * count * 2 * width**2
        return (self.depth + 1) * block_macs(count, width, self.hidden) + skips + tokens * width * self.vocabulary

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
          draw: for dropout: `NAME` of each block, a draw for it, see `UViTBlock`.
          train: whether dropout is on.

        Raises:
          ValueError: for ids of another shape or no integers, labels of other names, or an unknown tap.
        """
        del t
        check_ids(x, self.layout, taps, self.tap_names)
        draw = draw if train else None
        tokens = TokenEmbed(self.vocabulary, self.classes, self.width, name="embed")(x, cond.labels, keep)
        values = {"tokens": tokens.astype(self.dtype)}  # [B, 1 + k, D]
        tokens, skips = values["tokens"], []

        def run(name: str, skip: Array | None = None) -> Array:
            block = UViTBlock(self.heads, self.hidden, self.dropout, self.dtype, self.attention, name=name)
            own = None if draw is None else draw.named(name)
            wanted = frozenset(tap for tap in taps if tap.partition(".")[0] == name)
            # one at a time: a skip of each block is kept, or taken
            out, inner = run_stack([block], tokens, skip, own, scan=False, remat=self.remat, taps=wanted)
            values.update(inner)
            return out

        for i in range(self.depth // 2):
            tokens = run(f"in_blocks_{i}")
            skips.append(tokens)
        tokens = run("mid_block")
        for i in range(self.depth // 2):
            tokens = run(f"out_blocks_{i}", skips.pop())
        tokens = values["norm"] = layer_norm("norm", EPSILON)(tokens)
        out, aux = logits(tokens, self.layout, bool(self.classes), keep, self.dtype)
        return Prediction(x=out, aux=aux, taps={name: values[name] for name in taps})

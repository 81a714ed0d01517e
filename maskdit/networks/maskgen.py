"""MaskGen with codes: a masked generator of a few tokens from text (Kim et al. 2025, arXiv 2501.07730).

The tokens are those of TA-TiTok; joint blocks mix them with the tokens of a text, and the embedding of the whole text
with an aesthetic score modulates every block. There is no embedding of time.

Parameters: `embedding`, `positions`, `text_embed`, `pooled_embed`, `label_embed.LABEL`, `blocks_i` (see `JointBlock`),
`final.modulation`, and `head` where the embedding is not the table of the logits too.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Layout, Prediction, null_condition
from maskdit.layers.embed import LabelEmbed
from maskdit.layers.linear import Linear
from maskdit.layers.stack import run_stack
from maskdit.networks.joint_block import INIT, AdaptiveNorm, JointBlock, check_text, joint_macs
from maskdit.networks.maskgit import check_ids

SIZES: dict[str, dict[str, int]] = {
    "L": {"width": 1024, "depth": 16, "heads": 16},
    "XL": {"width": 1280, "depth": 20, "heads": 16},
}
"""Of the models with codes that the authors published."""
SCORE = "aesthetic"
"""The one micro-condition: an aesthetic score from 0 to 10."""
SCORE_SCALE, SCORE_PERIOD = 100.0, 1000.0
"""Factor of the score before its sines and cosines, and their longest period over 2 pi."""


def size(name: str) -> dict[str, int]:
    """The fields `width`, `depth` and `heads` of a size.

    Raises:
      ValueError: where there is no size of that name.
    """
    if name not in SIZES:
        raise ValueError(f"there is no size '{name}': use one of {', '.join(SIZES)}")
    return dict(SIZES[name])


def score_features(score: Array, channels: int) -> Array:
    """Sines, then cosines, of a hundred times the score `[B]`: `[B, channels]` float32; an odd last channel is zero."""
    half = channels // 2
    frequency = jnp.exp(-math.log(SCORE_PERIOD) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = SCORE_SCALE * score.astype(jnp.float32)[:, None] * frequency
    features = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, channels % 2)))


class MaskGen(nn.Module):
    """Masked transformer over a sequence or grid of codes, conditioned on a text.

    Attributes:
      vocabulary: number of codes.
      grid: numbers of tokens along the axes of the codes, `(128,)` for a sequence.
      width, depth, heads: of the transformer; see `size`.
      text_width: numbers per token of the text.
      pooled_width: numbers of the embedding of the whole text.
      scalars: the value of `SCORE` where a condition gives none; empty for a network without it.
      score_width: sines and cosines of the score.
      tied: whether the logits are products with the codes' embeddings, without bias.
      spare: rows of the embedding behind the mask's that nothing reads; published tables have them.
      classes: label name -> number of classes, which may condition it besides the text; the embeddings are summed.
      text_tokens: tokens of the texts that `macs` counts with; any number can be given.
      attention: attention backend, see `maskdit.layers.attention`.
      scan: whether equal blocks run under one `lax.scan`: faster to compile; the same parameters and results.
      remat: what a block keeps for the backward pass, a name of `maskdit.layers.stack.REMAT`.
      dtype: dtype of tokens and products; norms, softmax, the condition and the logits are float32.
    """

    vocabulary: int
    grid: tuple[int, ...]
    width: int
    depth: int
    heads: int
    text_width: int = 768
    pooled_width: int = 768
    scalars: Mapping[str, float] = nn.FrozenDict({SCORE: 6.0})
    score_width: int = 256
    tied: bool = True
    spare: int = 0
    classes: Mapping[str, int] = nn.FrozenDict()
    text_tokens: int = 77
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses micro-conditions that it does not have."""
        super().__post_init__()
        if set(self.scalars) - {SCORE}:
            raise ValueError(f"scalars is empty or has a value for {SCORE}, not for {', '.join(self.scalars)}")

    @property
    def layout(self) -> Layout:
        """The tokens."""
        return Layout(grid=tuple(self.grid), vocabulary=self.vocabulary)

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The names that `taps=` takes; blocks give text and image, text first."""
        return ("tokens", "cond", *(f"blocks_{i}" for i in range(self.depth)), "final")

    def null(self, cond: Cond) -> Cond:
        """The condition with text and labels dropped; the score stays."""
        return null_condition(cond, self.classes)

    def macs(self, keep: int | None = None) -> int:
        """Multiply-adds of one example's forward pass with a text of `text_tokens`; look-ups count nothing."""
        _all_tokens(keep)
        tokens, text, width = self.layout.tokens, self.text_tokens, self.width
        total = sum(joint_macs(text, tokens, width, last=i == self.depth - 1) for i in range(self.depth))
        total += text * self.text_width * width + (self.pooled_width + self._features) * width
        return total + 2 * width**2 + tokens * width * self.vocabulary

    @property
    def _features(self) -> int:
        """Channels of the score's sines and cosines."""
        return self.score_width if self.scalars else 0

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
        """Logits of the codes.

        Args:
          x: ids `[B, K]`; `vocabulary` is the mask.
          t: part of the contract; not used.
          cond: `text` `[B, T, text_width]`, `pooled` `[B, pooled_width]`, `SCORE` in `scalars`, and labels where there
            are classes.
          keep: part of the contract; must be None.
          taps: inner values to return, of `tap_names`.
          draw, train: part of the contract; nothing here is random.

        Returns:
          Logits `[B, K, V]`.

        Raises:
          ValueError: for ids of another shape, a text that is missing or of another width, unknown taps, or `keep`.
        """
        del t, draw, train
        _all_tokens(keep)
        check_ids(x, self.layout, taps, self.tap_names)
        given, pooled = check_text(cond.text, cond.pooled, self.text_width, self.pooled_width)
        c = self._condition(cond, pooled)
        init = nn.with_logical_partitioning(INIT, ("vocab", "embed"))
        table = self.param("embedding", init, (self.vocabulary + 1 + self.spare, self.width), jnp.float32)
        places = self.param(
            "positions", nn.with_logical_partitioning(INIT, (None, "embed")), (x.shape[1], self.width), jnp.float32
        )
        image = (jnp.take(table, x, axis=0, mode="clip") + places).astype(self.dtype)  # [B, K, D]
        text = Linear(self.width, dtype=self.dtype, axes=(None, "embed"), kernel_init=INIT, name="text_embed")(given)

        make = functools.partial(JointBlock, self.heads, text.shape[1], dtype=self.dtype, backend=self.attention)
        blocks = [make(last=i == self.depth - 1, name=f"blocks_{i}") for i in range(self.depth)]
        both = jnp.concatenate([text, image], axis=1)  # [B, T + K, D]
        both, values = run_stack(
            blocks, both, c, scan=self.scan, remat=self.remat, dtype=self.dtype, taps=frozenset(taps)
        )
        final = AdaptiveNorm(self.dtype, name="final")(both[:, text.shape[1] :], c)
        if self.tied:
            codes = table[: self.vocabulary].astype(self.dtype)
            logits = jnp.einsum("bkd,vd->bkv", final, codes, preferred_element_type=jnp.float32)
        else:
            logits = Linear(self.vocabulary, dtype=self.dtype, axes=("embed", "vocab"), kernel_init=INIT, name="head")(
                final
            )
        values |= {"tokens": image, "cond": c, "final": final}
        return Prediction(x=logits.astype(jnp.float32), taps={name: values[name] for name in taps})

    def _condition(self, cond: Cond, pooled: Array) -> Array:
        """The condition of all blocks, `[B, D]` float32."""
        unknown = sorted(set(cond.scalars) - set(self.scalars))
        if unknown:
            takes = f"only {SCORE}" if self.scalars else "none"
            raise ValueError(
                f"the network was given the numbers {', '.join(unknown)}, and takes {takes}: leave them out"
            )
        parts = [pooled.astype(jnp.float32)]
        if self.scalars:
            score = jnp.broadcast_to(cond.scalars.get(SCORE, self.scalars[SCORE]), pooled.shape[:1])
            parts.append(score_features(score, self.score_width))
        embed = Linear(self.width, axes=(None, "embed"), kernel_init=INIT, name="pooled_embed")
        c = embed(jnp.concatenate(parts, axis=1))
        if self.classes:
            c += LabelEmbed(self.classes, self.width, True, name="label_embed")(cond.labels)
        return c


def _all_tokens(keep: object) -> None:
    if keep is not None:
        raise ValueError("MaskGen predicts all tokens at once, not a part of them: leave keep out")

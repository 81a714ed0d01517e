"""Meissonic: a masked generator of images from text (Bai et al. 2024, arXiv 2410.08261).

Ids of a grid become a map, which a convolution may halve; joint blocks mix its tokens with those of a text, single
blocks follow, and the map grows back before the logits. Places are rotations; the share of masked tokens, the whole
text and micro-conditions (size of the image, crop, aesthetic score) modulate every block.

Parameters (products have `kernel` and, but for those of the map, `bias`): `embedding`, `embed_norm`, `embed`,
`down_norm`, `down`, `in_norm`, `in`, `text_embed`, `text_norm`, `micro_embed.{fc1,fc2}`, `time_embed.{fc1,fc2}`,
`pooled_embed.{fc1,fc2}`, `label_embed.LABEL`, `joint_i` (see `JointBlock`), `single_i` (see `SingleBlock`), `out_norm`,
`out`, `up_norm`, `up`, `head`, `head_norm`, `logits`.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, Draw, Layout, Prediction, null_condition
from maskdit.layers.embed import LabelEmbed, TimeEmbed, time_features
from maskdit.layers.linear import Linear
from maskdit.layers.norm import RMSNorm
from maskdit.layers.patch import patchify, unpatchify
from maskdit.layers.rope import place_angles
from maskdit.layers.stack import run_stack
from maskdit.networks.joint_block import INIT, JointBlock, SingleBlock, check_text, joint_macs, single_macs
from maskdit.networks.maskgit import check_ids

MICRO = ("width", "height", "crop_y", "crop_x", "aesthetic")
"""The micro-conditions, in the order of their features: sides of the image and corner of the crop in pixels, score."""
FEATURES = 256
"""Cosines and sines of the time and of each micro-condition."""
TIME_SCALE = 1000.0
"""Factor of the time before its cosines and sines."""
STRIDE = 2
"""By which a side of the map is divided where the network works on a smaller one."""


class Perceptron(nn.Module):
    """`fc2(silu(fc1(x)))`, in float32.

    Attributes:
      width: of both layers.
      use_bias: whether they have biases.
    """

    width: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, C]` to `[B, width]`."""
        product = functools.partial(Linear, self.width, self.use_bias, kernel_init=INIT)
        return product(axes=("time", "embed"), name="fc2")(nn.silu(product(axes=(None, "time"), name="fc1")(x)))


class Meissonic(nn.Module):
    """Masked transformer over a grid of codes, conditioned on a text.

    Attributes:
      vocabulary: number of codes.
      grid: rows and columns of codes.
      width, depth, single_depth, heads: of the transformer: joint blocks, single blocks.
      text_width: numbers per token of the text.
      pooled_width: numbers of the embedding of the whole text.
      rope: of a head's channels, how many turn with each axis: none of an image's (zero for all tokens), row, column.
      halved: whether the transformer works on a map of half the sides, of which the grid's must be multiples.
      spare: rows of the embedding between the codes and the mask that nothing reads; published tables have some.
      scalars: the values of the micro-conditions (`MICRO`) where a condition gives none.
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
    single_depth: int
    heads: int
    text_width: int
    pooled_width: int
    rope: tuple[int, ...] = (16, 56, 56)
    halved: bool = False
    spare: int = 0
    scalars: Mapping[str, float] = nn.FrozenDict(
        {"width": 1024.0, "height": 1024.0, "crop_y": 0.0, "crop_x": 0.0, "aesthetic": 6.0}
    )
    classes: Mapping[str, int] = nn.FrozenDict()
    text_tokens: int = 77
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        super().__post_init__()
        if len(self.grid) != 2 or (self.halved and any(side % STRIDE for side in self.grid)):
            sides = f" of sides that divide by {STRIDE} (halved=True)" if self.halved else ""
            raise ValueError(f"this network works on rows and columns{sides}, not grid={tuple(self.grid)}: change it")
        if self.width % self.heads or sum(self.rope) != self.width // self.heads or any(n % 2 for n in self.rope):
            raise ValueError(
                f"rope={tuple(self.rope)} must be even numbers whose sum is a head's channels, of width={self.width} "
                f"and heads={self.heads}: change one of them"
            )
        if len(self.rope) != 3:
            raise ValueError(
                f"rope={tuple(self.rope)} has {len(self.rope)} axes: there are three, the first of no place"
            )
        if set(self.scalars) != set(MICRO):
            raise ValueError(f"scalars has a value for each of {', '.join(MICRO)}, not for {', '.join(self.scalars)}")

    @property
    def layout(self) -> Layout:
        """The grid of codes."""
        return Layout(grid=tuple(self.grid), vocabulary=self.vocabulary)

    @property
    def inner_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in the transformer."""
        rows, columns = self.grid
        return (rows // STRIDE, columns // STRIDE) if self.halved else (rows, columns)

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The names that `taps=` takes; blocks give text and image, text first."""
        blocks = [f"joint_{i}" for i in range(self.depth)] + [f"single_{i}" for i in range(self.single_depth)]
        return ("tokens", "cond", *blocks, "final")

    def null(self, cond: Cond) -> Cond:
        """The condition with text and labels dropped; micro-conditions stay."""
        return null_condition(cond, self.classes)

    def macs(self, keep: int | None = None) -> int:
        """Multiply-adds of one example's forward pass with a text of `text_tokens`; look-ups count nothing."""
        _all_tokens(keep)
        codes, tokens, text, width = math.prod(self.grid), math.prod(self.inner_grid), self.text_tokens, self.width
        total = self.depth * joint_macs(text, tokens, width)
        total += self.single_depth * single_macs(text + tokens, width)
        total += text * self.text_width * width + 2 * codes * width**2 + codes * width * self.vocabulary
        total += 2 * tokens * width**2 * (1 + STRIDE**2 * self.halved)
        inputs = FEATURES + len(MICRO) * FEATURES + self.pooled_width + width  # of time, micro-conditions, text
        return total + inputs * width + 3 * width**2

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
          x: ids `[B, K]`, row by row; `vocabulary` is the mask.
          t: time `[B]` or one for all: the share of masked tokens. The published sampler gives the number of steps that
            follow, its training a thousand times the share.
          cond: `text` `[B, T, text_width]`, `pooled` `[B, pooled_width]`, micro-conditions in `scalars`, and labels
            where there are classes.
          keep: part of the contract; must be None.
          taps: inner values to return, of `tap_names`.
          draw, train: part of the contract; nothing here is random.

        Returns:
          Logits `[B, K, V]`.

        Raises:
          ValueError: for ids of another shape, a text that is missing or of another width, unknown taps, or `keep`.
        """
        del draw, train
        _all_tokens(keep)
        check_ids(x, self.layout, taps, self.tap_names)
        given, pooled = check_text(cond.text, cond.pooled, self.text_width, self.pooled_width)
        c = self._condition(t, cond, pooled, x.shape[0])
        image = self._embed(x)  # [B, n, D]
        text = Linear(self.width, dtype=self.dtype, axes=(None, "embed"), kernel_init=INIT, name="text_embed")(given)
        text = RMSNorm(name="text_norm")(text)
        tokens, values = self._blocks(jnp.concatenate([text, image], axis=1), c, text.shape[1], taps)
        logits, final = self._head(tokens[:, text.shape[1] :])
        values |= {"tokens": image, "cond": c, "final": final}
        return Prediction(x=logits, taps={name: values[name] for name in taps})

    def _condition(self, t: Array, cond: Cond, pooled: Array, batch: int) -> Array:
        """The condition of all blocks, `[B, D]` float32."""
        unknown = sorted(set(cond.scalars) - set(MICRO))
        if unknown:
            raise ValueError(f"the network takes {', '.join(MICRO)}, not {', '.join(unknown)}: leave these out")
        numbers = [jnp.broadcast_to(cond.scalars.get(name, self.scalars[name]), (batch,)) for name in MICRO]
        micro = time_features(jnp.stack(numbers, axis=1).reshape(-1), FEATURES).reshape(batch, -1)  # [B, 5 * 256]
        both = jnp.concatenate([pooled.astype(jnp.float32), micro], axis=1)
        whole = Perceptron(self.width, use_bias=False, name="micro_embed")(both)
        c = Perceptron(self.width, name="pooled_embed")(whole)
        c += TimeEmbed(self.width, FEATURES, name="time_embed")(TIME_SCALE * jnp.broadcast_to(t, (batch,)))
        if self.classes:
            c += LabelEmbed(self.classes, self.width, True, name="label_embed")(cond.labels)
        return c

    def _product(self, name: str, features: int, axes: tuple[str | None, str | None] = ("embed", None)) -> Any:
        """A product without bias: a convolution of the map whose windows do not overlap."""
        return Linear(features, use_bias=False, dtype=self.dtype, axes=axes, kernel_init=INIT, name=name)

    def _embed(self, ids: Array) -> Array:
        """Ids `[B, K]` as the transformer's tokens `[B, n, D]`."""
        init = nn.with_logical_partitioning(INIT, ("vocab", "embed"))
        table = self.param("embedding", init, (self.vocabulary + self.spare + 1, self.width), jnp.float32)
        rows = jnp.where(ids >= self.vocabulary, self.vocabulary + self.spare, ids)
        x = RMSNorm(name="embed_norm")(jnp.take(table, rows, axis=0, mode="clip")).astype(self.dtype)
        x = self._product("embed", self.width)(x)  # [B, K, D]
        if self.halved:
            x = RMSNorm(name="down_norm")(x).reshape(-1, *self.grid, self.width)
            x = self._product("down", self.width, ("patch", "embed"))(patchify(x, STRIDE))  # [B, n, D]
        return self._product("in", self.width)(RMSNorm(name="in_norm")(x))

    def _blocks(self, x: Array, c: Array, text: int, taps: Sequence[str]) -> tuple[Array, dict[str, Array]]:
        """All blocks over text and image `[B, T + n, D]`, and the taps."""
        row, column = np.meshgrid(*(np.arange(side) for side in self.inner_grid), indexing="ij")
        places = np.stack([np.zeros(row.size), row.ravel(), column.ravel()], axis=1)
        places = np.concatenate([np.zeros((text, 3)), places])  # the text stands at the first corner
        angles = jnp.asarray(place_angles(places, self.rope))  # [T + n, d / 2]
        joint = functools.partial(JointBlock, self.heads, text, True, dtype=self.dtype, backend=self.attention)
        single = functools.partial(SingleBlock, self.heads, self.dtype, self.attention)
        blocks = [joint(name=f"joint_{i}") for i in range(self.depth)]
        blocks += [single(name=f"single_{i}") for i in range(self.single_depth)]
        return run_stack(blocks, x, c, angles, scan=self.scan, remat=self.remat, dtype=self.dtype, taps=frozenset(taps))

    def _head(self, tokens: Array) -> tuple[Array, Array]:
        """Logits `[B, K, V]` float32 of the transformer's tokens `[B, n, D]`, and what they are made of `[B, K, D]`."""
        x = self._product("out", self.width, (None, "embed"))(RMSNorm(name="out_norm")(tokens))
        if self.halved:
            x = self._product("up", STRIDE**2 * self.width, ("embed", "patch"))(RMSNorm(name="up_norm")(x))
            x = unpatchify(x, self.inner_grid, STRIDE).reshape(x.shape[0], -1, self.width)  # [B, K, D]
        final = RMSNorm(name="head_norm")(self._product("head", self.width)(x))
        return self._product("logits", self.vocabulary, ("embed", "vocab"))(final).astype(jnp.float32), final


def _all_tokens(keep: Any) -> None:
    if keep is not None:
        raise ValueError("Meissonic predicts all tokens of a grid at once, not a part of them: leave keep out")

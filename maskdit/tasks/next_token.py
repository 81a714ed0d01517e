"""Latents held predictable from those before them (CRT, Ramanujan et al. 2024, arXiv 2412.16326)."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, PyTree
from maskdit.layers.attention import SelfAttention
from maskdit.layers.linear import Linear
from maskdit.layers.mlp import Mlp


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Squared error of a small causal transformer that tells each code of an image from those before it.

    Codes are taken row by row. Their gradient reaches the encoder, both from what is told and from what it is told by,
    so that a later autoregressive model has it easier. The paper's width, depth and weight: unverified.

    Attributes:
      width: of the transformer.
      depth: number of its blocks.
      heads: of its attention; they divide `width`.
      weight: factor of the loss in training.

    Raises:
      ValueError: for numbers out of their range.
    """

    width: int = 512
    depth: int = 2
    heads: int = 8
    weight: float = 1.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise ValueError(
                f"NextToken has width={self.width}, depth={self.depth}, heads={self.heads}: give whole numbers from 1, "
                "heads a divisor of the width"
            )
        if self.weight < 0:
            raise ValueError(f"NextToken has weight={self.weight}: give 0 or more")

    def network(self, channels: int) -> "CausalTransformer":
        """The transformer for codes of so many channels."""
        return CausalTransformer(channels, self.width, self.depth, self.heads)

    def init(self, key: Array, values: Any) -> PyTree:
        """Parameters of the transformer, for codes `[1, ..., c]` or their shape.

        Raises:
          ValueError: for a single code, which has no next.
        """
        flat = jnp.zeros((1, *_sequence(values.shape)))
        return self.network(flat.shape[-1]).init(key, flat[:, :-1])["params"]

    def loss(self, params: PyTree, values: Array) -> Array:
        """The squared error `[B]`, the mean over codes and channels, without `weight`.

        Args:
          params: of `init`.
          values: codes as the decoder takes them, `[B, h, w, c]` or `[B, K, c]`, with their straight-through gradient.
        """
        flat = values.astype(jnp.float32).reshape(values.shape[0], *_sequence(values.shape))  # [B, K, c]
        told = self.network(flat.shape[-1]).apply({"params": params}, flat[:, :-1])
        return jnp.square(told - flat[:, 1:]).mean((1, 2))


def _sequence(shape: tuple[int, ...]) -> tuple[int, int]:
    """Length and channels of the codes of one image."""
    length = math.prod(shape[1:-1])
    if length < 2:
        raise ValueError(f"codes of shape {list(shape)} are one in an image: next-token prediction needs two or more")
    return length, shape[-1]


class CausalTransformer(nn.Module):
    """Codes to a guess at the code after each, from it and those before it.

    Attributes:
      channels: of a code.
      width: of the blocks.
      depth: number of blocks.
      heads: of their attention.
    """

    channels: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, K, channels]` to the same shape."""
        place = self.param("place", nn.initializers.normal(0.02), (x.shape[1], self.width), jnp.float32)
        x = Linear(self.width, name="embed")(x) + place  # [B, K, width]
        for i in range(self.depth):
            x = x + SelfAttention(self.heads, causal=True, name=f"attn_{i}")(nn.LayerNorm(name=f"norm1_{i}")(x))
            x = x + Mlp(4 * self.width, name=f"mlp_{i}")(nn.LayerNorm(name=f"norm2_{i}")(x))
        return Linear(self.channels, name="out")(nn.LayerNorm(name="norm_out")(x))

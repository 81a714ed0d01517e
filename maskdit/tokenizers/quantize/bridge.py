"""A codebook that is computed by a network (FVQ, Chang et al. 2025, arXiv 2509.10140).

The codes are the outputs of a small transformer over the whole codebook, so every code moves at every update, used or
not. After training only the outputs count: `fold` leaves them as a plain codebook.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from maskdit.contracts import Array, PyTree
from maskdit.layers.attention import SelfAttention
from maskdit.layers.linear import Linear
from maskdit.layers.mlp import Mlp
from maskdit.layers.stack import run_stack


class VQBridge(nn.Module):
    """Raw codes to codes: neighbours are joined to tokens, which pass transformer blocks and are parted again.

    Attributes:
      group: codes of one token.
      width, depth, heads: of the transformer.
      mlp_ratio: hidden width of its perceptrons over the width.
      scan: whether blocks run under one `lax.scan`.
      dtype: dtype of the products; norms and the codes are float32.
    """

    group: int = 16
    width: int = 256
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 4.0
    scan: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, codes: Array) -> Array:
        """Maps `[V, c]` to `[V, c]`, float32.

        Raises:
          ValueError: where the codes do not divide into groups.
        """
        count, channels = codes.shape
        if count % self.group:
            raise ValueError(
                f"{count} codes do not divide into groups of group={self.group}: choose a divisor of the codes"
            )
        tokens = codes.reshape(1, count // self.group, self.group * channels)  # [1, V/g, g*c]
        x = Linear(self.width, dtype=self.dtype, axes=("patch", "embed"), name="compress")(tokens)
        make = functools.partial(_Block, self.heads, self.mlp_ratio, self.dtype)
        blocks = [make(name=f"blocks_{i}") for i in range(self.depth)]
        x, _ = run_stack(blocks, x, scan=self.scan, remat="none", dtype=self.dtype)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x.astype(jnp.float32))
        x = Linear(tokens.shape[-1], dtype=self.dtype, axes=("embed", "patch"), name="expand")(x)
        return x.astype(jnp.float32).reshape(count, channels)


class _Block(nn.Module):
    """A transformer block with norms before its two parts."""

    heads: int
    mlp_ratio: float
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        width = x.shape[-1]
        norms = [nn.LayerNorm(epsilon=1e-6, name=name) for name in ("norm1", "norm2")]
        x = x + SelfAttention(self.heads, self.dtype, name="attn")(norms[0](x).astype(self.dtype))
        x = x + Mlp(int(width * self.mlp_ratio), self.dtype, name="mlp")(norms[1](x).astype(self.dtype))
        return x, {}


def fold(quantizer: Any, params: PyTree) -> tuple[Any, PyTree]:
    """The quantizer without its bridge, and its parameters: the codes that the bridge gives are the codebook.

    Args:
      quantizer: a `VQ` with a `bridge`.
      params: its parameters, `codebook` and `bridge`.

    Raises:
      ValueError: for a quantizer without a bridge.
    """
    if quantizer.bridge is None:
        raise ValueError("this quantizer has no bridge to fold away: its codebook is plain already")
    bridge = quantizer.bridge.clone(parent=None)
    codes = jax.jit(bridge.apply)({"params": params["bridge"]}, meta.unbox(params["codebook"]))
    return quantizer.clone(parent=None, bridge=None), {"codebook": codes}

"""Causal self-attention that can keep the keys and values of earlier tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.layers.attention import attention
from maskdit.layers.linear import Linear
from maskdit.layers.norm import layer_norm

Array = jax.Array
Memory = dict[str, Array]
"""Keys and values of earlier tokens, `k` and `v`, each `[B, P, H, d]`."""
_EPSILON = 1e-6
_SMALL = nn.initializers.truncated_normal(0.02)


class CausalAttention(nn.Module):
    """Multi-head self-attention in which token i sees the tokens up to i, with layer norms on queries and keys.

    Attributes:
      heads: number of heads; the width of the input must divide by it.
      dtype: dtype of the products.
    """

    heads: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Array, drop: Array | None = None, memory: Memory | None = None, place: Any = 0
    ) -> tuple[Array, Memory]:
        """Maps tokens `[B, N, D]` to `[B, N, D]`; also returns the keys and values that they saw.

        Args:
          x: tokens.
          drop: factors of the weights `[B, H, N, N]`, see `attention`; not with a memory.
          memory: holds the `place` tokens before; these tokens are written behind them. None for no earlier tokens.
          place: of the first token of `x`; may be traced.
        """
        batch, tokens, width = x.shape
        if width % self.heads:
            raise ValueError(f"a width of {width} does not divide into {self.heads} heads: change one of them")
        part: dict[str, Any] = {"dtype": self.dtype, "kernel_init": _SMALL}
        joined = Linear(3 * width, axes=("embed", "heads"), parts=3, name="qkv", **part)(x)
        q, k, v = (one.reshape(batch, tokens, self.heads, -1) for one in joined)  # [B, N, H, d]
        q, k = (layer_norm(name, _EPSILON)(one).astype(self.dtype) for name, one in (("q_norm", q), ("k_norm", k)))
        if memory is None:
            out = attention(q, k, v, causal=True, drop=drop)
        else:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(memory[name], new, place, 1) for name, new in (("k", k), ("v", v))
            )
            out = _attend(q, k, v, place)
        out = Linear(width, axes=("heads", "embed"), name="proj", **part)(out.reshape(batch, tokens, width))
        return out, {"k": k, "v": v}


def _attend(q: Array, k: Array, v: Array, place: Any) -> Array:
    """Attention of the tokens from `place` on, `q` `[B, N, H, d]`, over a memory `[B, P, H, d]`."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    seen = jnp.arange(k.shape[1]) <= place + jnp.arange(q.shape[1])[:, None]  # [N, P]; the rest is not written yet
    weights = nn.softmax(jnp.where(seen, logits, -jnp.inf))  # [B, H, N, P]
    return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v)

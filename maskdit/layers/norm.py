"""Norms with parameters, computed in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Array


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + epsilon) * scale` over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467).

    Attributes:
      epsilon: added to the mean of squares.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises `[..., D]`; shape and dtype stay."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        rate = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.epsilon)
        return (wide * rate * scale).astype(x.dtype)


def layer_norm(name: str | None, epsilon: float) -> nn.LayerNorm:
    """A layer norm over the last axis with scale and bias, computed in float32."""
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)

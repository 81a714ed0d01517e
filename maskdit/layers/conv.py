"""Convolution and group norm over NHWC maps.

Weights are kept in float32; a `dtype` field says in which precision the product is computed. Norms are always float32.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class Conv(nn.Module):
    """A two-dimensional convolution (cross-correlation) over NHWC maps.

    Attributes:
      features: output channels.
      kernel: side of the square window.
      stride: step of the window.
      padding: zeros before and after each side, `(before, after)`; None keeps the size at stride 1.
      use_bias: whether a bias is added.
      dtype: precision of the product.
      axes: logical names of the kernel's input and output channels, for sharding.
      kernel_init: initialiser of the kernel `[k, k, in, out]`.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: tuple[int, int] | None = None
    use_bias: bool = True
    dtype: str = "float32"
    axes: tuple[str | None, str | None] = (None, None)
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, in]` to `[B, H', W', features]`."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel_init: Any = nn.with_logical_partitioning(self.kernel_init, (None, None, *self.axes))
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        before, after = ((self.kernel - 1) // 2, self.kernel // 2) if self.padding is None else self.padding
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=((before, after), (before, after)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            bias_init: Any = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[1:])
            x = x + self.param("bias", bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return x


class GroupNorm(nn.Module):
    """Group normalisation over NHWC maps, computed in float32 (Wu and He 2018).

    Attributes:
      groups: groups of neighbouring channels, each normalised over space and its channels.
      epsilon: added to the variance.

    Raises:
      ValueError: where the channels do not divide into the groups.
    """

    groups: int = 32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises `x` `[B, H, W, C]`; shape and dtype stay."""
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"{channels} channels do not divide into groups={self.groups}: choose a divisor of {channels}"
            )
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, channels // self.groups)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        # two passes: the mean of squares minus the squared mean loses digits where the mean is large
        variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
        normed = ((grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (normed * scale + bias).astype(x.dtype)

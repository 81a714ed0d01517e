"""The one dense layer of the library."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.layers.gradients import plain

Array = jax.Array
Axes = tuple[str | None, str | None]


class Linear(nn.Module):
    """`x @ kernel + bias` on the last axis; every product with a weight in the library is this named module.

    Parameters are float32: `kernel` `[in, features]` and `bias` `[features]`, with logical axis names for sharding.
    Adapters and quantizers find the module by its path through `flax.linen.intercept_methods`.

    Attributes:
      features: size of the output's last axis.
      use_bias: whether a bias is added.
      dtype: dtype of the product.
      axes: logical names of the kernel's input and output axis.
      kernel_init, bias_init: initialisers.
    """

    features: int
    use_bias: bool = True
    dtype: str = "float32"
    axes: Axes = (None, None)
    kernel_init: Callable[..., Any] = nn.initializers.xavier_uniform()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[..., in]` to `[..., features]`."""
        kernel_init = nn.with_logical_partitioning(self.kernel_init, self.axes)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if not self.use_bias:
            return product(x, kernel)
        bias_init = nn.with_logical_partitioning(self.bias_init, self.axes[1:])
        bias = self.param("bias", bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return product(x, kernel) + rows(bias, x.shape[:-1])


def product(x: Array, kernel: Array) -> Array:
    """`x [..., in] @ kernel [in, out]`."""
    return x @ kernel if plain() else _product(x, kernel)


def rows(bias: Array, shape: tuple[int, ...]) -> Array:
    """`bias [out]` repeated to `[*shape, out]`."""
    return jnp.broadcast_to(bias, (*shape, *bias.shape)) if plain() else _rows(bias, shape)


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    # The derived gradient of the kernel comes out as [out, in] and is transposed; x.T @ g is [in, out] at once.
    x, kernel = saved
    return g @ kernel.T, x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])


_product.defvjp(_product_forward, _product_backward)


def _rows_impl(bias: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(bias, (*shape, *bias.shape))


_rows = jax.custom_vjp(_rows_impl, nondiff_argnums=(1,))


def _rows_forward(bias: Array, shape: tuple[int, ...]) -> tuple[Array, None]:
    return _rows_impl(bias, shape), None


def _rows_backward(shape: tuple[int, ...], _: None, g: Array) -> tuple[Array]:
    # A sum over rows as a product with ones runs at the speed of matrix products on a CPU.
    del shape
    g = g.reshape(-1, g.shape[-1])
    return (jnp.ones((g.shape[0],), g.dtype) @ g,)


_rows.defvjp(_rows_forward, _rows_backward)

"""The one dense layer of the library."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.layers import sharding
from maskdit.layers.gradients import by_hand, plain

Array = jax.Array
Axes = tuple[str | None, str | None]


class Linear(nn.Module):
    """`x @ kernel + bias` on the last axis; every product with a weight in the library is this named module.

    Parameters are float32: `kernel` `[in, features]`, or `[in, parts, features / parts]`, and `bias` `[features]`, with
    logical axis names for sharding.
    Adapters and quantizers find the module by its path through `flax.linen.intercept_methods`.

    Attributes:
      features: size of the output's last axis, of all parts together.
      use_bias: whether a bias is added.
      dtype: dtype of the product.
      axes: logical names of the kernel's input and output axis.
      parts: the output comes as so many equal parts, whose kernels lie side by side: `kernel` `[in, parts, features /
        parts]`. Each part's output axis is cut over devices by itself.
      kernel_init, bias_init: initialisers; of the kernel as `[in, features]`.
    """

    features: int
    use_bias: bool = True
    dtype: str = "float32"
    axes: Axes = (None, None)
    parts: int = 1
    kernel_init: Callable[..., Any] = nn.initializers.xavier_uniform()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Any:
        """Maps `[..., in]` to `[..., features]`, or to a tuple of `parts` arrays `[..., features / parts]`."""
        size = x.shape[-1]
        axes = self.axes if self.parts == 1 else (self.axes[0], None, self.axes[1])
        shape = (size, self.features) if self.parts == 1 else (size, self.parts, self.features // self.parts)
        kernel_init = nn.with_logical_partitioning(
            lambda key, shape, dtype: self.kernel_init(key, (size, self.features), dtype).reshape(shape), axes
        )
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        bias = None
        if self.use_bias:
            bias_axes = self.axes[1:] if self.parts == 1 else (None,)  # cut in one piece it would not match the parts
            bias_init = nn.with_logical_partitioning(self.bias_init, bias_axes)
            bias = self.param("bias", bias_init, (self.features,), jnp.float32).astype(self.dtype)
        if self.parts == 1:
            return _affine(x, kernel, bias, self.axes)
        if by_hand() and sharding.device_count() == 1:  # one large product is faster on a CPU
            return tuple(jnp.split(_affine(x, kernel.reshape(size, -1), bias, self.axes), self.parts, axis=-1))
        if sharding.cut_across(kernel, axes):  # one product, so that the gradient of x is summed over devices once
            scattered = not plain() and sharding.scattered(x, kernel, axes)
            out = sharding.product(x, kernel, axes) if scattered else sharding.applied(x, kernel)
            out = out if bias is None else out + bias.reshape(self.parts, -1)
            return tuple(out[..., i, :] for i in range(self.parts))
        biases = (None,) * self.parts if bias is None else jnp.split(bias, self.parts)
        return tuple(_affine(x, kernel[:, i], biases[i], self.axes) for i in range(self.parts))


def _affine(x: Array, kernel: Array, bias: Array | None, axes: Axes) -> Array:
    out = product(x, kernel, axes)
    return out if bias is None else out + rows(bias, x.shape[:-1])


def product(x: Array, kernel: Array, axes: Axes = (None, None)) -> Array:
    """`x [..., in] @ kernel [in, out]`; `axes` are the kernel's logical names, for programs on a mesh."""
    if not plain() and sharding.scattered(x, kernel, axes):
        return sharding.product(x, kernel, axes)
    return _product(x, kernel) if by_hand() else x @ kernel


def rows(bias: Array, shape: tuple[int, ...]) -> Array:
    """`bias [out]` repeated to `[*shape, out]`."""
    return _rows(bias, shape) if by_hand() else jnp.broadcast_to(bias, (*shape, *bias.shape))


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

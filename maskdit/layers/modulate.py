"""Adaptive layer norm (adaLN, DiT, Peebles & Xie 2023, section 3.2): normalise, modulate, gate.

`norm_modulate` and `gate_add` have hand-written gradients with plain versions beside them; see `gradients`.
"""

import jax
import jax.numpy as jnp

from maskdit.layers.gradients import by_hand
from maskdit.layers.platform import platform

Array = jax.Array
EPSILON = 1e-6


def norm_modulate(x: Array, shift: Array, scale: Array) -> Array:
    """`LayerNorm(x) * (1 + scale) + shift`, LayerNorm without parameters, statistics in float32.

    Args:
      x: tokens `[B, N, D]`.
      shift, scale: one row per example, `[B, D]`.
    """
    return _norm_modulate(x, shift, scale) if by_hand() else _norm_modulate_plain(x, shift, scale)


def gate_add(x: Array, y: Array, gate: Array) -> Array:
    """`x + gate * y` for tokens `x`, `y` `[B, N, D]` and one gate per example, `[B, D]`."""
    return _gate_add(x, y, gate) if by_hand() else _gate_add_plain(x, y, gate)


def token_sum(x: Array) -> Array:
    """Sum over tokens, `[B, N, D]` to `[B, D]`, as a product with ones, the fastest sum on a CPU."""
    ones = jnp.ones((x.shape[0], 1, x.shape[1]), x.dtype)
    return jnp.matmul(ones, x)[:, 0]


def _statistics(x: Array) -> tuple[Array, Array]:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    if platform() == "cpu":
        variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    else:  # both moments in one pass, at the end of the product that makes x; the float32 of flax's LayerNorm
        variance = jnp.maximum(jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean), 0.0)
    return mean, jax.lax.rsqrt(variance + EPSILON)


def _norm_modulate_plain(x: Array, shift: Array, scale: Array) -> Array:
    wide = x.astype(jnp.float32)
    mean, rstd = _statistics(wide)
    scale, shift = scale.astype(jnp.float32)[:, None], shift.astype(jnp.float32)[:, None]
    return ((wide - mean) * rstd * (1 + scale) + shift).astype(x.dtype)


_norm_modulate = jax.custom_vjp(_norm_modulate_plain)


def _norm_modulate_forward(x: Array, shift: Array, scale: Array) -> tuple[Array, tuple[Array, ...]]:
    mean, rstd = _statistics(x.astype(jnp.float32))
    normed = (x.astype(jnp.float32) - mean) * rstd
    out = normed * (1 + scale.astype(jnp.float32)[:, None]) + shift.astype(jnp.float32)[:, None]
    return out.astype(x.dtype), (x, mean, rstd, scale)


def _norm_modulate_backward(saved: tuple[Array, ...], g: Array) -> tuple[Array, Array, Array]:
    x, mean, rstd, scale = saved
    normed = (x.astype(jnp.float32) - mean) * rstd
    g = g.astype(jnp.float32)
    inner = g * (1 + scale.astype(jnp.float32)[:, None])
    along = jnp.mean(inner * normed, axis=-1, keepdims=True)
    dx = rstd * (inner - jnp.mean(inner, axis=-1, keepdims=True) - normed * along)
    return dx.astype(x.dtype), token_sum(g).astype(scale.dtype), token_sum(g * normed).astype(scale.dtype)


_norm_modulate.defvjp(_norm_modulate_forward, _norm_modulate_backward)


def _gate_add_plain(x: Array, y: Array, gate: Array) -> Array:
    return x + gate[:, None] * y


_gate_add = jax.custom_vjp(_gate_add_plain)


def _gate_add_forward(x: Array, y: Array, gate: Array) -> tuple[Array, tuple[Array, Array]]:
    return _gate_add_plain(x, y, gate), (y, gate)


def _gate_add_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array, Array]:
    y, gate = saved
    return g, g * gate[:, None], token_sum(g * y)


_gate_add.defvjp(_gate_add_forward, _gate_add_backward)

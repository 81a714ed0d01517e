"""Attention: one function that chooses how to compute it, and the self-attention layer around it."""

import functools
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.layers.linear import Linear

Array = jax.Array
BACKENDS = ("xla", "cudnn")
_log = logging.getLogger(__name__)


def attention(q: Array, k: Array, v: Array, *, backend: str = "auto") -> Array:
    """`softmax(q k^T / sqrt(D)) v` for `q` `[B, N, H, D]`, `k` and `v` `[B, M, H, D]`: `[B, N, H, D]`.

    The softmax is taken in float32. The fused kernels have no forward mode (`jax.jvp`): ask for `xla` there.

    Args:
      q, k, v: queries, keys and values, in one dtype.
      backend: `xla`, `cudnn` (Nvidia GPU, 16-bit dtypes), or `auto`: the fastest that the platform, the dtype and the
        shape allow. A backend that does not fit is replaced by `xla`, with a line in the log.

    Raises:
      ValueError: for another backend name.
    """
    if choose(backend, jax.default_backend(), str(q.dtype), q.shape[-1]) == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return _xla(q, k, v)


def _xla(q: Array, k: Array, v: Array) -> Array:
    # Divides by the softmax's sum after the product with v, which is D / M of the work, and takes the sum as a product
    # with ones: on a CPU a tenth faster than softmax, forward and backward.
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights @ jnp.ones((weights.shape[-1], 1), jnp.float32)  # [B, H, N, 1]
    out = jnp.einsum("bhnm,bmhd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return out.astype(v.dtype).swapaxes(1, 2)


@functools.cache
def choose(backend: str, platform: str, dtype: str, head_dim: int) -> str:
    """The name of the backend that `attention` uses; the reason is logged once per combination."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"there is no attention backend '{backend}': use one of {('auto', *BACKENDS)}")
    missing = [
        why
        for fits, why in (
            (platform == "gpu", f"the platform is {platform}, not gpu"),
            (dtype in ("bfloat16", "float16"), f"the dtype is {dtype}, not a 16-bit one"),
            (head_dim <= 128 and head_dim % 8 == 0, f"a head has {head_dim} channels, not a multiple of 8 up to 128"),
        )
        if not fits
    ]
    if backend == "xla":
        _say("xla (asked for)")
        return "xla"
    if missing:
        instead = " instead of cudnn" if backend == "cudnn" else ""
        _say(f"xla{instead} ({'; '.join(missing)})")
        return "xla"
    _say(f"cudnn ({platform}, {dtype}, {head_dim} channels per head)")
    return "cudnn"


@functools.cache
def _say(choice: str) -> None:
    """Logs a choice, once."""
    _log.info("attention: %s", choice)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values.

    Attributes:
      heads: number of heads; the width of the input must divide by it.
      dtype: dtype of the products.
      backend: see `attention`.
    """

    heads: int
    dtype: str = "float32"
    backend: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps tokens `[B, N, D]` to `[B, N, D]`."""
        batch, tokens, width = x.shape
        if width % self.heads:
            raise ValueError(f"a width of {width} does not divide into {self.heads} heads: change one of them")
        qkv = Linear(3 * width, dtype=self.dtype, axes=("embed", "heads"), name="qkv")(x)
        q, k, v = (part.reshape(batch, tokens, self.heads, -1) for part in jnp.split(qkv, 3, axis=-1))  # [B, N, H, d]
        out = attention(q, k, v, backend=self.backend).reshape(batch, tokens, width)
        return Linear(width, dtype=self.dtype, axes=("heads", "embed"), name="proj")(out)

"""Attention: one function that chooses how to compute it, and the self-attention layer around it."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from maskdit.layers.gradients import by_hand, plain
from maskdit.layers.linear import Linear
from maskdit.layers.platform import platform

Array = jax.Array
BACKENDS = ("xla", "cudnn", "splash")
FUSED = {"gpu": "cudnn", "tpu": "splash"}
"""The fused kernel that each platform has."""
SPLASH_FROM = 1024
"""Tokens from which `auto` takes the TPU kernel. By the TPU compiler's estimates XLA is faster at 256 tokens, while at
1024 the weights that XLA keeps for the gradient (2 bytes x heads x queries x keys) outweigh all else that a block
stores. Not measured on a TPU."""
SPLASH_TILE = 128
"""The TPU kernel cuts queries and keys into blocks of a multiple of this many tokens."""
_SPLASH_BLOCK = 512  # tokens in the largest block; not tuned on a TPU
_log = logging.getLogger(__name__)


def attention(
    q: Array, k: Array, v: Array, *, backend: str = "auto", causal: bool = False, drop: Array | None = None
) -> Array:
    """`softmax(q k^T / sqrt(D)) v` for `q` `[B, N, H, D]`, `k` and `v` `[B, M, H, D]`: `[B, N, H, D]`.

    The softmax is taken in float32. The fused kernels have no forward mode (`jax.jvp`): inside
    `maskdit.layers.gradients.plain_gradients` they are left alone. The platform is that of
    `maskdit.layers.platform.platform`.

    Under a mesh (`jax.set_mesh`) and axis rules, a fused kernel runs on each device's rows and heads (the logical axes
    `batch` and `heads`); an axis that does not divide stays whole.

    Args:
      q, k, v: queries, keys and values, in one dtype.
      backend: `xla`, `cudnn` (Nvidia GPU, 16-bit dtypes), `splash` (TPU, tokens in multiples of 128), or `auto`: the
        fastest that the platform, the dtype and the shape allow. A backend that does not fit is replaced by `xla`, with
        a line in the log.
      causal: whether query i sees the keys up to i only; `xla` computes it, whatever `backend`.
      drop: factors of the softmax's weights, `[B, H, N, M]`, as `maskdit.layers.dropout.factors` gives them; `xla`
        computes it, whatever `backend`. None for no dropout.

    Raises:
      ValueError: for another backend name.
    """
    if causal or drop is not None:
        return _xla(q, k, v, causal, drop)
    chosen = choose(backend, platform(), str(q.dtype), q.shape[1], k.shape[1], q.shape[-1], plain())
    if chosen == "cudnn":
        return _on_mesh(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), q, k, v)
    if chosen == "splash":
        return _on_mesh(_splash, q, k, v)
    return _xla(q, k, v)


def _xla(q: Array, k: Array, v: Array, causal: bool = False, drop: Array | None = None) -> Array:
    # Divides by the softmax's sum after the product with v, which is D / M of the work. The sum comes from a product
    # with ones: on a CPU one of its own, a tenth faster than softmax, forward and backward; elsewhere as one more
    # channel of v, which costs nothing where heads are padded to 128 channels, while a sum reads all weights again.
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if causal:
        logits = jnp.where(jnp.tri(q.shape[1], k.shape[1], dtype=bool), logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    if by_hand() or drop is not None:  # the sum is of the weights before they are dropped
        total = weights @ jnp.ones((weights.shape[-1], 1), jnp.float32)  # [B, H, N, 1]
        weights = weights if drop is None else weights * drop
        out = jnp.einsum("bhnm,bmhd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    else:
        wide = jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)  # [B, M, H, D + 1]
        out = jnp.einsum("bhnm,bmhd->bhnd", weights.astype(v.dtype), wide, preferred_element_type=jnp.float32)
        out = out[..., :-1] / out[..., -1:]
    return out.astype(v.dtype).swapaxes(1, 2)  # [B, N, H, D]


def _splash(q: Array, k: Array, v: Array) -> Array:
    """JAX's TPU kernel. Beside `flash_attention` it stores one number per query for the gradient in place of 256."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # takes a second to import

    queries, keys, heads = q.shape[1], k.shape[1], q.shape[2]
    rows, columns = _block(queries), _block(keys)
    sizes = splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    mask = splash.MultiHeadMask([splash.FullMask((queries, keys))] * heads)
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes)
    # The kernel does not scale; a scale rounded to bfloat16 would be another temperature.
    scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    return jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (scaled, k, v))).swapaxes(1, 2)


def _block(tokens: int) -> int:
    """The largest block that divides the tokens."""
    return max(size for size in range(SPLASH_TILE, _SPLASH_BLOCK + 1, SPLASH_TILE) if tokens % size == 0)


def _on_mesh(kernel: Callable[..., Array], q: Array, k: Array, v: Array) -> Array:
    """Runs a kernel on each device's part: XLA cannot cut a custom call, and cuDNN's own rule refuses some layouts."""
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    if not free:
        return kernel(q, k, v)

    def part(axes: str | tuple[str, ...] | None, size: int) -> tuple[str, ...] | None:
        cut = tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes or ()) if axis in free)
        return cut if cut and size % math.prod(mesh.shape[axis] for axis in cut) == 0 else None

    batch, _, heads, _ = nn.logical_to_mesh_axes(("batch", None, "heads", None)) or (None,) * 4
    spec = PartitionSpec(part(batch, q.shape[0]), None, part(heads, q.shape[2]), None)
    cut = jax.shard_map(kernel, in_specs=(spec, spec, spec), out_specs=spec, axis_names=free, check_vma=False)
    return cut(q, k, v)


@functools.cache
def choose(backend: str, platform: str, dtype: str, queries: int, keys: int, head_dim: int, plain: bool = False) -> str:
    """The name of the backend that `attention` uses; the reason is logged once per combination.

    Args:
      backend: what was asked for.
      platform: `cpu`, `gpu` or `tpu`.
      dtype: of queries, keys and values.
      queries, keys: numbers of tokens.
      head_dim: channels per head.
      plain: whether the gradients must have a forward mode.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"there is no attention backend '{backend}': use one of {('auto', *BACKENDS)}")
    if backend == "xla":
        _say("xla (asked for)")
        return "xla"
    kernel = FUSED.get(platform) if backend == "auto" else backend
    if kernel is None:
        _say(f"xla (there is no fused kernel for the platform {platform})")
        return "xla"
    missing = _missing(kernel, platform, dtype, queries, keys, head_dim)
    if plain:
        missing.append("fused kernels have no forward-mode gradient")
    if backend == "auto" and kernel == "splash" and min(queries, keys) < SPLASH_FROM:
        missing.append(f"{min(queries, keys)} tokens: splash is used from {SPLASH_FROM} on")
    if missing:
        instead = f" instead of {backend}" if backend != "auto" else ""
        _say(f"xla{instead} ({'; '.join(missing)})")
        return "xla"
    _say(f"{kernel} ({platform}, {dtype}, {head_dim} channels per head)")
    return kernel


def _missing(kernel: str, platform: str, dtype: str, queries: int, keys: int, head_dim: int) -> list[str]:
    """What a fused kernel needs and is not given."""
    if kernel == "cudnn":
        needs = (
            (platform == "gpu", f"the platform is {platform}, not gpu"),
            (dtype in ("bfloat16", "float16"), f"the dtype is {dtype}, not a 16-bit one"),
            (head_dim <= 128 and head_dim % 8 == 0, f"a head has {head_dim} channels, not a multiple of 8 up to 128"),
        )
    else:
        tiles = queries % SPLASH_TILE == 0 and keys % SPLASH_TILE == 0
        tokens = str(queries) if queries == keys else f"{queries} and {keys}"
        needs = (
            (platform == "tpu", f"the platform is {platform}, not tpu"),
            (dtype in ("bfloat16", "float32"), f"the dtype is {dtype}, not bfloat16 or float32"),
            (tiles, f"{tokens} tokens, not a multiple of {SPLASH_TILE}"),
        )
    return [why for fits, why in needs if not fits]


@functools.cache
def _say(choice: str) -> None:
    """Logs a choice, once."""
    _log.info("attention: %s", choice)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one weight for queries, keys and values.

    Attributes:
      heads: number of heads; the width of the input must divide by it.
      dtype: dtype of the products.
      backend, causal: see `attention`.
      qkv_bias: whether queries, keys and values have a bias.
      kernel_init: initialiser of both weights.
    """

    heads: int
    dtype: str = "float32"
    backend: str = "auto"
    causal: bool = False
    qkv_bias: bool = True
    kernel_init: Callable[..., Any] = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Array, drop: Array | None = None) -> Array:
        """Maps tokens `[B, N, D]` to `[B, N, D]`; `drop` `[B, heads, N, N]` as in `attention`."""
        batch, tokens, width = x.shape
        if width % self.heads:
            raise ValueError(f"a width of {width} does not divide into {self.heads} heads: change one of them")
        fields: dict[str, Any] = {"dtype": self.dtype, "kernel_init": self.kernel_init}
        joined = Linear(3 * width, self.qkv_bias, axes=("embed", "heads"), parts=3, name="qkv", **fields)
        q, k, v = (part.reshape(batch, tokens, self.heads, -1) for part in joined(x))  # [B, N, H, d]
        out = attention(q, k, v, backend=self.backend, causal=self.causal, drop=drop).reshape(batch, tokens, width)
        return Linear(width, axes=("heads", "embed"), name="proj", **fields)(out)

"""Blocks over a text and an image together: MM-DiT of Stable Diffusion 3 and the single-stream blocks of Flux.

Tokens travel as one row, text first: `[B, T + N, D]`. In a joint block each of the two kinds has weights of its own
and meets the other in attention alone (Esser et al. 2024, arXiv 2403.03206, figure 2); a single block has one set of
weights for both, and its attention and perceptron read the same input (Dehghani et al. 2023, arXiv 2302.05442, section
2.1). Attention sees every token of the text, padding too, as the published networks do.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array
from maskdit.layers.attention import attention
from maskdit.layers.linear import Linear
from maskdit.layers.modulate import gate_add, norm_modulate
from maskdit.layers.norm import RMSNorm
from maskdit.layers.rope import rotate
from maskdit.layers.sharding import hold_rows

INIT = nn.initializers.normal(0.02)
"""Of all products here."""
MLP_RATIO = 4
"""Hidden width of the perceptrons over the width."""

Heads = tuple[Array, Array, Array]


class Stream(nn.Module):
    """The weights of one kind of tokens in a joint block.

    Attributes:
      width, heads: of the tokens and the attention.
      qk_norm: whether queries and keys of each head are normalised.
      last: whether the tokens end here: they are read by attention, and no output is made of them.
      dtype: dtype of the products.
    """

    width: int
    heads: int
    qk_norm: bool = False
    last: bool = False
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        product = functools.partial(Linear, dtype=self.dtype, kernel_init=INIT)
        self.modulation = product((2 if self.last else 6) * self.width, axes=("embed", "cond"))
        self.qkv = product(3 * self.width, axes=("embed", "heads"), parts=3)
        if self.qk_norm:
            self.norm_q, self.norm_k = RMSNorm(), RMSNorm()
        if not self.last:
            self.proj = product(self.width, axes=("heads", "embed"))
            self.fc1 = product(MLP_RATIO * self.width, axes=("embed", "mlp"))
            self.fc2 = product(self.width, axes=("mlp", "embed"))

    def project(self, x: Array, c: Array) -> tuple[Heads, list[Array]]:
        """Queries, keys and values `[B, N, H, d]` of tokens `[B, N, D]`, and what `finish` modulates with."""
        shift, scale, *rest = jnp.split(hold_rows(self.modulation(nn.silu(c))), 2 if self.last else 6, axis=-1)
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(norm_modulate(x, shift, scale)))
        return (self.norm_q(q), self.norm_k(k), v) if self.qk_norm else (q, k, v), rest

    def finish(self, x: Array, attended: Array, modulation: list[Array]) -> Array:
        """The tokens `[B, N, D]` after what attention gave `[B, N, D]` and the perceptron."""
        gate, shift, scale, gate_mlp = modulation
        x = gate_add(x, self.proj(attended), gate)
        hidden = nn.gelu(self.fc1(norm_modulate(x, shift, scale)), approximate=True)  # [B, N, 4 D]
        return gate_add(x, self.fc2(hidden), gate_mlp)


class JointBlock(nn.Module):
    """Two streams that attend to each other. Parameters: `text` and `image`, see `Stream`.

    Attributes:
      heads: attention heads.
      text: number of text tokens, the first of the row.
      qk_norm: whether queries and keys of each head are normalised.
      last: whether the text ends here; it then comes out as it went in.
      dtype: dtype of the products.
      backend: attention backend.
    """

    heads: int
    text: int
    qk_norm: bool = False
    last: bool = False
    dtype: str = "float32"
    backend: str = "auto"

    @nn.compact
    def __call__(self, x: Array, c: Array, angles: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, T + N, D]` under a condition `[B, D]`.

        Args:
          x: the tokens.
          c: the condition.
          angles: by which queries and keys are rotated, `[T + N, d / 2]`; None for no rotation.
        """
        stream = functools.partial(Stream, x.shape[-1], self.heads, self.qk_norm, dtype=self.dtype)
        streams = stream(last=self.last, name="text"), stream(name="image")
        tokens = x[:, : self.text], x[:, self.text :]
        made = [one.project(part, c) for one, part in zip(streams, tokens, strict=True)]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*(heads for heads, _ in made), strict=True))
        out = attend(q, k, v, angles, self.backend)  # [B, T + N, D]
        text = tokens[0] if self.last else streams[0].finish(tokens[0], out[:, : self.text], made[0][1])
        image = streams[1].finish(tokens[1], out[:, self.text :], made[1][1])
        return jnp.concatenate([text, image], axis=1), {}


class SingleBlock(nn.Module):
    """One stream, attention and perceptron side by side. Queries and keys are normalised.

    Parameters: `modulation`, `qkv`, `norm_q`, `norm_k`, `fc1`, `out`.

    Attributes:
      heads: attention heads.
      dtype: dtype of the products.
      backend: attention backend.
    """

    heads: int
    dtype: str = "float32"
    backend: str = "auto"

    @nn.compact
    def __call__(self, x: Array, c: Array, angles: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, N, D]`; arguments as `JointBlock`'s."""
        width = x.shape[-1]
        product = functools.partial(Linear, dtype=self.dtype, kernel_init=INIT)
        modulation = product(3 * width, axes=("embed", "cond"), name="modulation")(nn.silu(c))
        shift, scale, gate = jnp.split(hold_rows(modulation), 3, axis=-1)
        inner = norm_modulate(x, shift, scale)
        joined = product(3 * width, axes=("embed", "heads"), parts=3, name="qkv")(inner)
        q, k, v = (split_heads(part, self.heads) for part in joined)
        out = attend(RMSNorm(name="norm_q")(q), RMSNorm(name="norm_k")(k), v, angles, self.backend)
        hidden = nn.gelu(product(MLP_RATIO * width, axes=("embed", "mlp"), name="fc1")(inner), approximate=True)
        both = jnp.concatenate([out, hidden], axis=-1)  # [B, N, 5 D]
        return gate_add(x, product(width, axes=("mlp", "embed"), name="out")(both), gate), {}


class AdaptiveNorm(nn.Module):
    """A layer norm whose shift and scale a condition gives; plain at the start.

    Attributes:
      dtype: dtype of the product.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        """Tokens `[B, N, D]` under a condition `[B, C]`."""
        zeros = nn.initializers.zeros_init()
        modulation = Linear(
            2 * x.shape[-1], dtype=self.dtype, axes=("embed", "cond"), kernel_init=zeros, name="modulation"
        )
        shift, scale = jnp.split(hold_rows(modulation(nn.silu(c))), 2, axis=-1)
        return norm_modulate(x, shift, scale)


def split_heads(x: Array, heads: int) -> Array:
    """`[B, N, D]` as `[B, N, H, D / H]`.

    Raises:
      ValueError: where the width does not divide.
    """
    if x.shape[-1] % heads:
        raise ValueError(f"a width of {x.shape[-1]} does not divide into {heads} heads: change one of them")
    return x.reshape(*x.shape[:2], heads, -1)


def attend(q: Array, k: Array, v: Array, angles: Array | None, backend: str) -> Array:
    """Attention with heads `[B, N, H, d]` put together again: `[B, N, H * d]`."""
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    return attention(q, k, v, backend=backend).reshape(*q.shape[:2], -1)


def joint_macs(text: int, image: int, width: int, last: bool = False) -> int:
    """Multiply-adds of a joint block on one example, modulation included."""
    weights = (4 + 2 * MLP_RATIO) * width**2
    total = image * weights + 6 * width**2
    total += text * 3 * width**2 + 2 * width**2 if last else text * weights + 6 * width**2
    return total + 2 * (text + image) ** 2 * width


def single_macs(tokens: int, width: int) -> int:
    """Multiply-adds of a single block on one example, modulation included."""
    return tokens * (4 + 2 * MLP_RATIO) * width**2 + 3 * width**2 + 2 * tokens**2 * width


def check_text(text: Array | None, pooled: Array | None, text_width: int, pooled_width: int) -> tuple[Array, Array]:
    """The text of a condition, `[B, T, text_width]` and `[B, pooled_width]`.

    Raises:
      ValueError: where one is missing or has another width.
    """
    if text is None or pooled is None:
        missing = " and ".join(name for name, array in (("text", text), ("pooled", pooled)) if array is None)
        raise ValueError(
            f"the network reads a text, and the condition has no {missing}: give the embeddings of its tokens "
            f"[B, T, {text_width}] as text and that of the whole [B, {pooled_width}] as pooled"
        )
    if text.ndim != 3 or text.shape[-1] != text_width or pooled.ndim != 2 or pooled.shape[-1] != pooled_width:
        raise ValueError(
            f"the network reads texts [B, T, {text_width}] with whole embeddings [B, {pooled_width}], not "
            f"{text.shape} and {pooled.shape}: use embeddings of its text encoder"
        )
    return text, pooled

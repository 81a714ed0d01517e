"""Vision transformers between images and a short sequence of latent tokens: the two sides of TiTok.

Latent tokens ride along with the patches of an image, attend to them, and are all that is kept; the decoder lets them
attend to a grid of mask tokens, which become the image (Yu et al. 2024, arXiv 2406.07550, section 3.2).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array
from maskdit.layers.attention import SelfAttention
from maskdit.layers.conv import Conv
from maskdit.layers.linear import Linear
from maskdit.layers.norm import layer_norm
from maskdit.layers.patch import patchify, unpatchify
from maskdit.layers.stack import run_stack

_SMALL = nn.initializers.truncated_normal(0.02)


class ViTBlock(nn.Module):
    """A pre-norm transformer block with the exact GELU.

    Attributes:
      heads: attention heads.
      epsilon: of the layer norms.
      layer_scale: initial value of the learned factor of each channel of a branch (LayerScale, Touvron et al. 2021,
        arXiv 2103.17239); None for no factors.
      dtype: precision of the products.
      mlp_ratio: hidden width of the perceptron over the width.
      qkv_bias: whether queries, keys and values have a bias.
    """

    heads: int
    epsilon: float = 1e-5
    layer_scale: float | None = None
    dtype: str = "float32"
    mlp_ratio: float = 4.0
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, N, D]` to the same shape; also returns `attn` and `mlp`, what the branches add."""
        width = x.shape[-1]
        y = layer_norm("norm1", self.epsilon)(x)
        attend = SelfAttention(self.heads, self.dtype, qkv_bias=self.qkv_bias, name="attn")
        attn = self._scaled("scale1", attend(y))
        x = x + attn
        y = layer_norm("norm2", self.epsilon)(x)
        hidden = int(width * self.mlp_ratio)
        y = Linear(hidden, dtype=self.dtype, axes=("embed", "mlp"), kernel_init=_SMALL, name="fc1")(y)
        y = nn.gelu(y, approximate=False)
        y = Linear(width, dtype=self.dtype, axes=("mlp", "embed"), kernel_init=_SMALL, name="fc2")(y)
        mlp = self._scaled("scale2", y)
        return x + mlp, {"attn": attn, "mlp": mlp}

    def _scaled(self, name: str, branch: Array) -> Array:
        if self.layer_scale is None:
            return branch
        init = nn.initializers.constant(self.layer_scale)
        return branch * self.param(name, init, branch.shape[-1:], jnp.float32).astype(branch.dtype)


def run_blocks(
    x: Array, depth: int, heads: int, *, epsilon: float, scan: bool, remat: str, dtype: str, **fields: Any
) -> Array:
    """Runs `blocks_0`, `blocks_1`, ... on tokens `[B, N, D]`; called in a `compact` method. `fields` are others of
    `ViTBlock`."""
    blocks = [ViTBlock(heads, epsilon, dtype=dtype, name=f"blocks_{i}", **fields) for i in range(depth)]
    return run_stack(blocks, x, scan=scan, remat=remat, dtype=dtype)[0]


class LatentEncoder(nn.Module):
    """Images and latent tokens to features of the latent tokens.

    Parameters: `patch_embed`, `class_token`, `positions` (of the class token and the patches), `latent_positions`,
    `norm_pre`, `blocks_i`, `norm_post`, `conv_out`.

    Attributes:
      width, depth, heads: of the transformer.
      patch: side of a patch in pixels.
      features: numbers per latent token that come out.
      mixed: whether the tokens' numbers are read in another order before the last product: the released weights of the
        first version were trained so, see `mix`.
      scan, remat: see `maskdit.layers.stack.run_stack`.
      dtype: precision of tokens and products.
    """

    width: int
    depth: int
    heads: int
    patch: int
    features: int
    mixed: bool = False
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array, latent_tokens: Array) -> Array:
        """Maps images `[B, H, W, 3]` in [0, 1] and tokens `[K, width]` to features `[B, K, features]`, float32."""
        batch, count = images.shape[0], latent_tokens.shape[0]
        part: dict[str, Any] = {"dtype": self.dtype, "kernel_init": _SMALL}
        patches = patchify(images, self.patch)  # [B, N, p*p*3]
        x = Linear(self.width, axes=("patch", "embed"), name="patch_embed", **part)(patches)  # [B, N, D]
        x = after_class(x, *_places(self, x.shape[1]))
        latents = latent_tokens + _learned(self, "latent_positions", (count, self.width))
        x = jnp.concatenate([x, _rows(latents, batch, x.dtype)], axis=1)  # [B, 1 + N + K, D]
        x = _transform(self, x)[:, -count:]  # [B, K, D]
        x = layer_norm("norm_post", 1e-5)(x)
        if self.mixed:
            x = mix(x)
        return Linear(self.features, axes=("embed", None), name="conv_out", **part)(x).astype(jnp.float32)


class LatentDecoder(nn.Module):
    """Latent tokens to an image, or to logits over another tokenizer's codes at each patch.

    Parameters: `embed`, `latent_positions`, `mask_token`, `class_token`, `positions`, with text `text_embed` and
    `text_positions`, `norm_pre`, `blocks_i`, `norm_post`, then `ffn` and `conv_out` for pixels, or `ffn_in` and
    `ffn_out` for logits.

    Attributes:
      width, depth, heads: of the transformer.
      grid: patches along a side of the image.
      patch: side of a patch in pixels.
      codes: logits at each patch; None for pixels.
      text: length of the text and numbers per token that the decoder is given; None for no text.
      scan, remat: see `maskdit.layers.stack.run_stack`.
      dtype: precision of tokens and products.
    """

    width: int
    depth: int
    heads: int
    grid: int
    patch: int
    codes: int | None = None
    text: tuple[int, int] | None = None
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, z: Array, text: Array | None = None) -> Array:
        """Decodes.

        Args:
          z: latent tokens `[B, K, c]`.
          text: embeddings `[B, T, E]` where the decoder takes text.

        Returns:
          Images `[B, H, W, 3]` in [0, 1], not clamped, or logits `[B, grid, grid, codes]`; float32.
        """
        batch, count = z.shape[:2]
        places, part = self.grid**2, {"dtype": self.dtype, "kernel_init": _SMALL}
        mask = _learned(self, "mask_token", (1, self.width))
        x = _rows(jnp.broadcast_to(mask, (places, self.width)), batch, jnp.dtype(self.dtype))
        x = after_class(x, *_places(self, places))
        latents = Linear(self.width, axes=(None, "embed"), name="embed", **part)(z)  # [B, K, D]
        rows = [x, latents + _learned(self, "latent_positions", (count, self.width)).astype(latents.dtype)]
        if self.text is not None and text is not None:
            words = Linear(self.width, axes=(None, "embed"), name="text_embed", **part)(text)  # [B, T, D]
            rows.append(words + _learned(self, "text_positions", (self.text[0], self.width)).astype(words.dtype))
        x = _transform(self, jnp.concatenate(rows, axis=1))[:, 1 : 1 + places]  # [B, N, D]
        x = layer_norm("norm_post", 1e-5)(x)
        if self.codes is None:
            x = Linear(self.patch**2 * 3, axes=("embed", "patch"), name="ffn", **part)(x)
            x = unpatchify(x, (self.grid, self.grid), self.patch)  # [B, H, W, 3]
            return Conv(3, name="conv_out", **part)(x).astype(jnp.float32)
        x = jnp.tanh(Linear(2 * self.width, axes=("embed", "mlp"), name="ffn_in", **part)(x))
        x = Linear(self.codes, axes=("mlp", "vocab"), name="ffn_out", **part)(x)  # [B, N, K]
        return x.reshape(batch, self.grid, self.grid, self.codes).astype(jnp.float32)


def mix(x: Array) -> Array:
    """Tokens `[B, K, D]` whose numbers, in the order of memory, are read as `[B, D, K]`, and transposed back.

    A slip of the first published TiTok, reshaping where it should have transposed: every output token holds parts of
    several. Weights that were trained with it need it.
    """
    batch, count, width = x.shape
    return x.reshape(batch, width, count).transpose(0, 2, 1)


def after_class(x: Array, first: Array, positions: Array) -> Array:
    """The class token `[1, D]` before grid tokens `[B, N, D]`, with places `[1 + N, D]` added: `[B, 1 + N, D]`."""
    return jnp.concatenate([_rows(first, len(x), x.dtype), x], axis=1) + positions.astype(x.dtype)


def _places(module: Any, count: int) -> tuple[Array, Array]:
    """The class token, and the places of it and of so many grid tokens."""
    return _learned(module, "class_token", (1, module.width)), _learned(module, "positions", (count + 1, module.width))


def _transform(module: Any, x: Array) -> Array:
    x = layer_norm("norm_pre", 1e-5)(x).astype(module.dtype)
    run: dict[str, Any] = {"scan": module.scan, "remat": module.remat, "dtype": module.dtype}
    return run_blocks(x, module.depth, module.heads, epsilon=1e-5, **run)


def _learned(module: nn.Module, name: str, shape: tuple[int, int]) -> Array:
    return module.param(name, nn.initializers.normal(shape[-1] ** -0.5), shape, jnp.float32)


def _rows(tokens: Array, batch: int, dtype: Any) -> Array:
    """Tokens `[N, D]` for each example: `[B, N, D]`."""
    return jnp.broadcast_to(tokens.astype(dtype), (batch, *tokens.shape))

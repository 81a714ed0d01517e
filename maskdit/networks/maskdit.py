"""MaskDiT: a DiT whose encoder sees a part of the patches, with a light decoder over all (Zheng et al. 2023).

Parameters are DiT's, and `decoder_embed.{modulation, linear}`, `mask_token`, `decoder_blocks_i`.
"""

import functools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Cond, Draw, Layout, Prediction, null_condition
from maskdit.layers.embed import sincos_2d
from maskdit.layers.patch import removed, scatter_tokens
from maskdit.layers.stack import run_stack
from maskdit.networks.dit import (
    TIME_FEATURES,
    Block,
    Head,
    block_macs,
    block_taps,
    check_call,
    embed_condition,
    embed_patches,
    prediction,
    square_layout,
)

Array = jax.Array


class MaskDiT(nn.Module):
    """Masked diffusion transformer.

    Attributes:
      input_size: side of the input.
      patch: side of a patch.
      channels: channels of the input.
      width, depth, heads: of the encoder; see `maskdit.networks.dit.size`.
      mlp_ratio: hidden width of the perceptrons over the width.
      decoder_width, decoder_depth, decoder_heads: of the decoder.
      use_decoder: without it the encoder's tokens go to the final layer, and removed patches of the output are zero.
      mask_token: whether the decoder has a learned token for removed places; without it they are zero.
      classes: label name -> number of classes; the embeddings of several are summed; empty for no condition. The null
        label, whose id is the number of classes, has the embedding zero.
      learned_variance: whether as many channels again are predicted and returned as `aux["variance"]`.
      position_grid: side, in tokens, of the grid that the tables of places are stretched from, for weights that were
        trained at another resolution; None for the network's own.
      attention: attention backend, see `maskdit.layers.attention`.
      scan: whether blocks run under one `lax.scan`: faster to compile; the same parameters and results.
      remat: what a block keeps for the backward pass, a name of `maskdit.layers.stack.REMAT`.
      dtype: dtype of tokens and products; norms, softmax, time embedding and the output are float32.
    """

    input_size: int
    patch: int
    channels: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    use_decoder: bool = True
    mask_token: bool = True
    classes: Mapping[str, int] = nn.FrozenDict()
    learned_variance: bool = False
    position_grid: int | None = None
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @property
    def layout(self) -> Layout:
        """Tokens and patches of the input."""
        return square_layout(self.input_size, self.patch, self.channels)

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The names that `taps=` takes."""
        decoder = ("decoder_in", *block_taps("decoder_blocks", self.decoder_depth)) if self.use_decoder else ()
        label = ("y_emb",) if self.classes else ()
        return ("tokens", "t_emb", *label, *block_taps("blocks", self.depth), *decoder, "final")

    def null(self, cond: Cond) -> Cond:
        """The condition with every label dropped."""
        return null_condition(cond, self.classes)

    def macs(self, keep: int | None = None) -> int:
        """Multiply-adds of one example's forward pass with `keep` encoder tokens, or all; look-ups count nothing."""
        tokens, width, pixels = self.layout.tokens, self.width, self.patch**2 * self.channels
        kept = keep or tokens
        total = self.depth * block_macs(kept, width, width, self.mlp_ratio) + kept * pixels * width
        total += TIME_FEATURES * width + width**2
        if self.use_decoder:
            total += kept * width * self.decoder_width + 2 * width**2
            total += self.decoder_depth * block_macs(tokens, self.decoder_width, width, self.mlp_ratio)
        last_width, last_tokens = (self.decoder_width, tokens) if self.use_decoder else (width, kept)
        return total + 2 * last_width * width + last_tokens * last_width * pixels * (1 + self.learned_variance)

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Cond,
        *,
        keep: Array | None = None,
        taps: Sequence[str] = (),
        draw: Draw | None = None,
        train: bool = False,
    ) -> Prediction:
        """Predicts from a noisy input.

        Args:
          x: `[B, H, W, C]`.
          t: times as the embedding takes them, `[B]` or one for all.
          cond: labels `[B]` by name.
          keep: ids `[B, k]` of the tokens that the encoder sees, in that order; the decoder predicts all patches, and
            `aux["mask"]` `[B, N]` is 1 where a token was removed. None for the unmasked network.
          taps: inner values to return, of `tap_names`.
          draw, train: part of the contract; nothing here is random.

        Raises:
          ValueError: for an input of another shape, labels of other names, or an unknown tap.
        """
        del draw, train
        layout, count = self.layout, self.layout.tokens
        check_call(x, layout, taps, self.tap_names)
        c, values = embed_condition(self.width, self.classes, False, t, cond, x.shape[0])
        tokens = embed_patches(x, self.patch, keep, self.width, self.dtype, self.position_grid)  # [B, N or k, D]
        values["tokens"] = tokens
        tokens, inner = self._stack("blocks", self.depth, self.heads, tokens, c, taps)
        values |= inner

        if self.use_decoder:
            values["decoder_in"] = tokens = self._decoder_tokens(tokens, c, keep)  # [B, N, decoder width]
            tokens, inner = self._stack("decoder_blocks", self.decoder_depth, self.decoder_heads, tokens, c, taps)
            values |= inner

        features = self.patch**2 * self.channels * (2 if self.learned_variance else 1)
        tokens = Head(features, self.dtype, name="final")(tokens, c).astype(jnp.float32)
        if keep is not None and not self.use_decoder:
            tokens = scatter_tokens(tokens, keep, jnp.zeros((x.shape[0], count, features), jnp.float32))
        values["final"] = tokens
        aux = {} if keep is None else {"mask": removed(keep, count)}
        return prediction(tokens, layout, aux, {name: values[name] for name in taps})

    def _stack(
        self, name: str, depth: int, heads: int, tokens: Array, c: Array, taps: Sequence[str]
    ) -> tuple[Array, dict[str, Array]]:
        make = functools.partial(Block, heads, self.mlp_ratio, self.dtype, self.attention)
        blocks = [make(name=f"{name}_{i}") for i in range(depth)]
        return run_stack(blocks, tokens, c, scan=self.scan, remat=self.remat, dtype=self.dtype, taps=frozenset(taps))

    def _decoder_tokens(self, tokens: Array, c: Array, keep: Array | None) -> Array:
        """Encoder tokens `[B, k, D]` at their places among mask tokens: `[B, N, decoder width]`."""
        width, count = self.decoder_width, self.layout.tokens
        tokens = Head(width, self.dtype, None, name="decoder_embed")(tokens, c)
        if self.mask_token:
            token_init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("embed",))
            token = self.param("mask_token", token_init, (width,), jnp.float32)
        if keep is not None:
            fill = token.astype(self.dtype) if self.mask_token else jnp.zeros((width,), self.dtype)
            tokens = scatter_tokens(tokens, keep, jnp.broadcast_to(fill, (tokens.shape[0], count, width)))
        return tokens + jnp.asarray(sincos_2d(width, self.layout.grid, self.position_grid)).astype(self.dtype)

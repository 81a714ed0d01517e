"""The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752): the structure of Stable Diffusion's.

One module covers the published relatives: Stable Diffusion (eightfold, 4 channels), MAR and VA-VAE (sixteenfold,
attention in the deepest level), Stable Diffusion 3 and Flux (16 channels, a shift, no 1x1 convolutions at the latents).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Latents, LatentSpec
from maskdit.layers.attention import attention
from maskdit.layers.conv import Conv, GroupNorm
from maskdit.layers.linear import Linear
from maskdit.layers.patch import patchify, unpatchify
from maskdit.tokenizers.posterior import normal_posterior


class VAE(nn.Module):
    """Images to continuous latents on a grid and back.

    Attributes:
      channels: width of each level, finest first; each level but the first halves the resolution.
      layers_per_block: residual blocks of each encoder level; decoder levels have one more.
      latent_channels: numbers per latent position.
      groups: groups of the group norms.
      attention_levels: levels (0 is the finest) with self-attention after each residual block, besides the middle.
      quant_conv: whether 1x1 convolutions follow the encoder and precede the decoder.
      scale, shift: a generator sees `(z - shift) * scale`.
      in_channels: image channels.
      patch: side of the patches of pixels that the finest level has as channels; 1 in the published ones.
      stem: width of the encoder's first convolution; None for that of the finest level.
      sample: whether `encode` draws from the posterior when it is given a draw; else it takes the mean.
      dtype: precision of convolutions and products; norms, softmax and the posterior are float32.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    groups: int = 32
    attention_levels: tuple[int, ...] = ()
    quant_conv: bool = True
    scale: float = 0.18215
    shift: float = 0.0
    in_channels: int = 3
    patch: int = 1
    stem: int | None = None
    sample: bool = True
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        shared: dict[str, Any] = {
            "channels": tuple(self.channels),
            "groups": self.groups,
            "attention_levels": tuple(self.attention_levels),
            "patch": self.patch,
            "dtype": self.dtype,
        }
        self.encoder = Encoder(
            blocks=self.layers_per_block, out_channels=2 * self.latent_channels, stem=self.stem, **shared
        )
        self.decoder = Decoder(blocks=self.layers_per_block + 1, out_channels=self.in_channels, **shared)
        if self.quant_conv:
            self.quant = Conv(2 * self.latent_channels, kernel=1, dtype=self.dtype)
            self.post_quant = Conv(self.latent_channels, kernel=1, dtype=self.dtype)

    @property
    def latent(self) -> LatentSpec:
        """The latents: a grid, one position for `patch * 2 ** (levels - 1)` pixels along a side."""
        return LatentSpec(
            layout="grid",
            downsample=self.patch * 2 ** (len(self.channels) - 1),
            channels=self.latent_channels,
            scale=self.scale,
            shift=self.shift,
        )

    @property
    def last_layer(self) -> str:
        """Path of the decoder's last kernel."""
        return "decoder/conv_out/kernel"

    @property
    def encoder_last_layer(self) -> str:
        """Path of the encoder's last kernel."""
        return "quant/kernel" if self.quant_conv else "encoder/conv_out/kernel"

    def __call__(self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None) -> Array:
        """Encodes and decodes: `[B, H, W, C]` to the same shape."""
        return self.decode(self.encode(images, cond, draw=draw), cond)

    def encode(
        self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Latents:
        """Encodes images.

        Args:
          images: `[B, H, W, in_channels]` in [-1, 1].
          cond, train: part of the contract; not used.
          draw: where given, and `sample` is set, latents are drawn from the posterior. Draws: `posterior` (normal).

        Returns:
          Latents with `values` `[B, h, w, latent_channels]`, scaled and shifted, and in `aux`: `moments`
          `[B, h, w, 2 * latent_channels]`, mean and log variance before its clamp; `kl` `[B]`, the divergence of the
          posterior from the standard normal in nats, summed over positions and channels.
        """
        moments = self.encoder(images)  # [B, h, w, 2c]
        if self.quant_conv:
            moments = self.quant(moments)
        return self.posterior(moments, draw=draw)

    def posterior(self, moments: Array, *, draw: Draw | None = None) -> Latents:
        """The latents that belong to `moments`, as `encode` returns them; for moments encoded beforehand."""
        return normal_posterior(moments, draw if self.sample else None, scale=self.scale, shift=self.shift)

    def decode(
        self, latents: Latents, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Array:
        """Decodes latents to images.

        Args:
          latents: `values` `[B, h, w, latent_channels]`, scaled and shifted.
          cond, draw, train: part of the contract; not used.

        Returns:
          Images `[B, H, W, in_channels]`, float32, about [-1, 1]: not clamped.

        Raises:
          ValueError: for latents without values.
        """
        if latents.values is None:
            raise ValueError("these latents have ids only: this autoencoder decodes values, those of its own encode")
        z = latents.values / self.scale + self.shift
        if self.quant_conv:
            z = self.post_quant(z)
        return self.decoder(z).astype(jnp.float32)


class Encoder(nn.Module):
    """Images to maps of the deepest level's resolution; fields as in `VAE`, `blocks` residual blocks per level."""

    channels: tuple[int, ...]
    blocks: int
    out_channels: int
    groups: int
    attention_levels: tuple[int, ...]
    dtype: str
    patch: int = 1
    stem: int | None = None
    middle_attention: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, C]` to `[B, h, w, out_channels]`."""
        part: dict[str, Any] = {"groups": self.groups, "dtype": self.dtype}
        if self.patch > 1:
            batch, height, width, _ = x.shape
            x = patchify(x, self.patch).reshape(
                batch, height // self.patch, width // self.patch, -1
            )  # [B, H/p, W/p, ppC]
        x = Conv(self.stem or self.channels[0], dtype=self.dtype, name="conv_in")(x)
        for level, width in enumerate(self.channels):
            for block in range(self.blocks):
                x = ResidualBlock(width, name=f"down_{level}_block_{block}", **part)(x)
                if level in self.attention_levels:
                    x = SpatialAttention(name=f"down_{level}_attn_{block}", **part)(x)
            if level < len(self.channels) - 1:
                # one zero on the right and at the bottom only, as in the published weights
                down = Conv(width, stride=2, padding=(0, 1), dtype=self.dtype, name=f"down_{level}_downsample")
                x = down(x)  # [B, H/2, W/2, C]
        x = _middle(x, part, self.middle_attention)
        x = nn.silu(GroupNorm(self.groups, name="norm_out")(x))
        return Conv(self.out_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latent maps to images; fields as in `VAE`, `blocks` residual blocks per level."""

    channels: tuple[int, ...]
    blocks: int
    out_channels: int
    groups: int
    attention_levels: tuple[int, ...]
    dtype: str
    patch: int = 1
    middle_attention: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, h, w, c]` to `[B, H, W, out_channels]`."""
        part: dict[str, Any] = {"groups": self.groups, "dtype": self.dtype}
        x = Conv(self.channels[-1], dtype=self.dtype, name="conv_in")(x)
        x = _middle(x, part, self.middle_attention)
        for level, width in reversed(tuple(enumerate(self.channels))):
            for block in range(self.blocks):
                x = ResidualBlock(width, name=f"up_{level}_block_{block}", **part)(x)
                if level in self.attention_levels:
                    x = SpatialAttention(name=f"up_{level}_attn_{block}", **part)(x)
            if level:
                x = x.repeat(2, axis=1).repeat(2, axis=2)  # [B, 2h, 2w, C], nearest neighbour
                x = Conv(width, dtype=self.dtype, name=f"up_{level}_upsample")(x)
        x = nn.silu(GroupNorm(self.groups, name="norm_out")(x))
        x = Conv(self.out_channels * self.patch**2, dtype=self.dtype, name="conv_out")(x)  # [B, H/p, W/p, ppC]
        return unpatchify(x.reshape(len(x), -1, x.shape[-1]), x.shape[1:3], self.patch) if self.patch > 1 else x


def _middle(x: Array, part: dict[str, Any], attends: bool) -> Array:
    width = x.shape[-1]
    x = ResidualBlock(width, name="mid_block_0", **part)(x)
    if attends:
        x = SpatialAttention(name="mid_attn", **part)(x)
    return ResidualBlock(width, name="mid_block_1", **part)(x)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside the identity, or beside a 1x1 convolution where the width changes."""

    features: int
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, C]` to `[B, H, W, features]`."""
        y = nn.silu(GroupNorm(self.groups, name="norm1")(x))
        y = Conv(self.features, dtype=self.dtype, name="conv1")(y)
        y = nn.silu(GroupNorm(self.groups, name="norm2")(y))
        y = Conv(self.features, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1, dtype=self.dtype, name="shortcut")(x)
        return x + y


class SpatialAttention(nn.Module):
    """Self-attention over the positions of a map, with one head as wide as the map."""

    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, C]` to the same shape."""
        batch, height, width, channels = x.shape
        y = GroupNorm(self.groups, name="norm")(x).reshape(batch, height * width, channels)  # [B, N, C]
        qkv = Linear(3 * channels, dtype=self.dtype, parts=3, name="qkv")(y)
        q, k, v = (part[:, :, None] for part in qkv)  # [B, N, 1, C] each
        y = attention(q, k, v)
        y = Linear(channels, dtype=self.dtype, name="out")(y[:, :, 0])
        return x + y.reshape(x.shape)

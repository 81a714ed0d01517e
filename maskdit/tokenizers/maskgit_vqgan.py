"""The convolutional VQGAN of MaskGIT (Chang et al. 2022, arXiv 2202.04200), without attention.

MAGE and ENAT use the same network, trained anew; TiTok's published decoders of proxy codes are its decoder.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Latents, LatentSpec
from maskdit.layers.conv import Conv, GroupNorm
from maskdit.tokenizers.grid import grid_latents, grid_values


class MaskGITVQGAN(nn.Module):
    """Images to codes on a grid and back.

    The network works on images in [0, 1]; `encode` and `decode` take and give [-1, 1] as all tokenizers.

    Attributes:
      quantize: the quantizer, of as many `channels` as `latent_channels`.
      channels: width of each level, finest first; each level but the first halves the resolution.
      blocks: residual blocks of each level, on both sides.
      middle_blocks: residual blocks at the deepest resolution besides; None for `blocks`.
      latent_channels: numbers per latent position.
      groups: groups of the group norms.
      stem: width of the encoder's first convolution; None for that of the finest level.
      dtype: precision of convolutions; norms and distances to codes are float32.

    Raises:
      ValueError: where the quantizer has another number of channels.
    """

    quantize: nn.Module
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2
    middle_blocks: int | None = None
    latent_channels: int = 256
    groups: int = 32
    stem: int | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        channels: int = self.quantize.channels
        if channels != self.latent_channels:
            raise ValueError(
                f"the quantizer has {channels} channels, the latents {self.latent_channels}: no layer stands between "
                "them, so set quantize.channels to latent_channels"
            )
        shared: dict[str, Any] = {
            "channels": tuple(self.channels),
            "blocks": self.blocks,
            "middle_blocks": self.middle_blocks,
            "groups": self.groups,
            "dtype": self.dtype,
        }
        self.encoder = MaskGITEncoder(out_channels=self.latent_channels, stem=self.stem, **shared)
        self.decoder = MaskGITDecoder(**shared)

    @property
    def latent(self) -> LatentSpec:
        """The latents: a grid of codes, one for `2 ** (levels - 1)` pixels along a side."""
        return LatentSpec(
            layout="grid",
            downsample=2 ** (len(self.channels) - 1),
            channels=self.latent_channels,
            vocabulary=self.quantize.codes,
        )

    @property
    def last_layer(self) -> str:
        """Path of the decoder's last kernel."""
        return "decoder/conv_out/kernel"

    @property
    def encoder_last_layer(self) -> str:
        """Path of the encoder's last kernel."""
        return "encoder/conv_out/kernel"

    def __call__(self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None) -> Array:
        """Encodes and decodes: `[B, H, W, 3]` to the same shape."""
        return self.decode(self.encode(images, cond, draw=draw), cond)

    def encode(
        self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Latents:
        """Encodes images.

        Args:
          images: `[B, H, W, 3]` in [-1, 1].
          cond: part of the contract; not used.
          draw, train: handed to the quantizer.

        Returns:
          Latents with `values` `[B, h, w, latent_channels]`, `ids` `[B, h * w]`, and the quantizer's losses and aux.
        """
        z = self.encoder((images + 1.0) / 2.0).astype(jnp.float32)  # [B, h, w, c]
        return grid_latents(self.quantize(z, draw=draw, train=train))

    def decode(
        self, latents: Latents, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Array:
        """Decodes latents to images.

        Args:
          latents: with `values` `[B, h, w, latent_channels]`, or `ids`: `[B, h, w]`, or `[B, K]` of a square grid.
          cond, draw, train: part of the contract; not used.

        Returns:
          Images `[B, H, W, 3]`, float32, about [-1, 1]: not clamped.

        Raises:
          ValueError: for latents with neither values nor ids, and for `[B, K]` ids of no square grid.
        """
        return self.decoder(grid_values(latents, self.quantize)).astype(jnp.float32) * 2.0 - 1.0

    def codebook(self) -> Array:
        """The codes `[V, c]`, as they are compared with latents."""
        return self.quantize.codebook()


class MaskGITEncoder(nn.Module):
    """Images in [0, 1] to maps of the deepest level's resolution; fields as in `MaskGITVQGAN`."""

    channels: tuple[int, ...]
    blocks: int
    out_channels: int
    middle_blocks: int | None = None
    groups: int = 32
    stem: int | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, C]` to `[B, h, w, out_channels]`."""
        part: dict[str, Any] = {"groups": self.groups, "dtype": self.dtype}
        x = Conv(self.stem or self.channels[0], use_bias=False, dtype=self.dtype, name="conv_in")(x)
        for level, width in enumerate(self.channels):
            for block in range(self.blocks):
                x = MaskGITBlock(width, name=f"down_{level}_block_{block}", **part)(x)
            if level < len(self.channels) - 1:
                x = nn.avg_pool(x, (2, 2), (2, 2))  # [B, H/2, W/2, C]
        x = _middle(x, self.blocks if self.middle_blocks is None else self.middle_blocks, part)
        x = nn.silu(GroupNorm(self.groups, name="norm_out")(x))
        return Conv(self.out_channels, kernel=1, dtype=self.dtype, name="conv_out")(x)


class MaskGITDecoder(nn.Module):
    """Latent maps to images in [0, 1], not clamped.

    Attributes:
      channels: width of each level, finest first; each level but the first doubles the resolution.
      blocks: residual blocks of each level.
      out_channels: image channels.
      middle_blocks: residual blocks at the deepest resolution, before the levels; None for `blocks`.
      groups: groups of the group norms.
      dtype: precision of convolutions; norms are float32.
    """

    channels: tuple[int, ...]
    blocks: int
    out_channels: int = 3
    middle_blocks: int | None = None
    groups: int = 32
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, h, w, c]` to `[B, H, W, out_channels]`."""
        part: dict[str, Any] = {"groups": self.groups, "dtype": self.dtype}
        x = Conv(self.channels[-1], dtype=self.dtype, name="conv_in")(x)
        x = _middle(x, self.blocks if self.middle_blocks is None else self.middle_blocks, part)
        for level, width in reversed(tuple(enumerate(self.channels))):
            for block in range(self.blocks):
                x = MaskGITBlock(width, name=f"up_{level}_block_{block}", **part)(x)
            if level:
                x = x.repeat(2, axis=1).repeat(2, axis=2)  # [B, 2h, 2w, C], nearest neighbour
                x = Conv(width, dtype=self.dtype, name=f"up_{level}_upsample")(x)
        x = nn.silu(GroupNorm(self.groups, name="norm_out")(x))
        return Conv(self.out_channels, dtype=self.dtype, name="conv_out")(x)


def _middle(x: Array, blocks: int, part: dict[str, Any]) -> Array:
    for block in range(blocks):
        x = MaskGITBlock(x.shape[-1], name=f"mid_block_{block}", **part)(x)
    return x


class MaskGITBlock(nn.Module):
    """Two normalised 3x3 convolutions without bias, beside the identity.

    Where the width changes, the published network puts its 1x1 convolution on the result of the two, not on the input,
    which goes no further; weights trained so need it so.
    """

    features: int
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, C]` to `[B, H, W, features]`."""
        y = nn.silu(GroupNorm(self.groups, name="norm1")(x))
        y = Conv(self.features, use_bias=False, dtype=self.dtype, name="conv1")(y)
        y = nn.silu(GroupNorm(self.groups, name="norm2")(y))
        y = Conv(self.features, use_bias=False, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1, use_bias=False, dtype=self.dtype, name="shortcut")(y)
        return x + y

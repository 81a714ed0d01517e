"""The convolutional VQGAN (Esser et al. 2021, arXiv 2012.09841) in the structure of LlamaGen, VAR and aMUSEd.

LlamaGen (Sun et al. 2024, arXiv 2406.06525) quantizes each position of a grid, VAR (Tian et al. 2024, arXiv 2404.02905)
the whole map scale by scale: the same network with another quantizer.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Latents, LatentSpec
from maskdit.layers.conv import Conv
from maskdit.tokenizers.grid import grid_latents, grid_values
from maskdit.tokenizers.vae import Decoder, Encoder


class VQGAN(nn.Module):
    """Images to codes and back, with the encoder and decoder of `VAE`.

    Attributes:
      quantize: any quantizer of the library; one with `scales` (sides of its maps, coarse to fine) makes the latents a
        pyramid of square images, the others a grid.
      channels: width of each level of the encoder, finest first; each level but the first halves the resolution.
      decoder_channels: those of the decoder; None for the same.
      layers_per_block: residual blocks of each encoder level; decoder levels have one more.
      latent_channels: channels between the encoder and the layer before the quantizer, and after the one behind it.
      groups: groups of the group norms.
      attention_levels: levels (0 is the finest) with self-attention after each residual block, besides the middle.
      middle_attention: whether there is self-attention in the middle.
      unit_range: whether the network works on images in [0, 1], as aMUSEd's and Meissonic's; `encode` and `decode` take
        and give [-1, 1] as all tokenizers.
      quant_kernel: side of the convolutions before and after the quantizer: 1 in LlamaGen, 3 in VAR.
      patch: side of the patches of pixels that the finest level has as channels; 1 in the published ones.
      stem: width of the encoder's first convolution; None for that of the finest level.
      dtype: precision of convolutions and products; norms, softmax and distances to codes are float32.

    Raises:
      ValueError: where encoder and decoder differ in their number of levels.
    """

    quantize: nn.Module
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    decoder_channels: tuple[int, ...] | None = None
    layers_per_block: int = 2
    latent_channels: int = 256
    groups: int = 32
    attention_levels: tuple[int, ...] = (4,)
    quant_kernel: int = 1
    patch: int = 1
    stem: int | None = None
    middle_attention: bool = True
    unit_range: bool = False
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        back = self.channels if self.decoder_channels is None else self.decoder_channels
        if len(back) != len(self.channels):
            raise ValueError(
                f"channels={tuple(self.channels)} and decoder_channels={tuple(back)} have {len(self.channels)} and "
                f"{len(back)} levels: give one width for each level on both sides"
            )
        shared: dict[str, Any] = {
            "groups": self.groups,
            "attention_levels": tuple(self.attention_levels),
            "patch": self.patch,
            "middle_attention": self.middle_attention,
            "dtype": self.dtype,
        }
        blocks, channels = self.layers_per_block, tuple(self.channels)
        self.encoder = Encoder(
            channels=channels, blocks=blocks, out_channels=self.latent_channels, stem=self.stem, **shared
        )
        self.decoder = Decoder(channels=tuple(back), blocks=blocks + 1, out_channels=3, **shared)
        kernel = self.quant_kernel
        self.quant = Conv(self.quantize.channels, kernel=kernel, dtype=self.dtype)
        self.post_quant = Conv(self.latent_channels, kernel=kernel, dtype=self.dtype)

    @property
    def latent(self) -> LatentSpec:
        """The latents: codes on a grid, one for `patch * 2 ** (levels - 1)` pixels along a side; or a pyramid."""
        quantize: Any = self.quantize
        downsample = self.patch * 2 ** (len(self.channels) - 1)
        scales = getattr(quantize, "scales", None)
        return LatentSpec(
            layout="grid" if scales is None else "pyramid",
            downsample=downsample,
            channels=quantize.channels,
            vocabulary=quantize.codes,
            tokens=None if scales is None else sum(side * side for side in scales),
            size=None if scales is None else scales[-1] * downsample,
        )

    @property
    def last_layer(self) -> str:
        """Path of the decoder's last kernel."""
        return "decoder/conv_out/kernel"

    @property
    def encoder_last_layer(self) -> str:
        """Path of the encoder's last kernel."""
        return "quant/kernel"

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
          Latents with `values` `[B, h, w, c]`, `ids` `[B, K]`, row by row or scale by scale, and the quantizer's losses
          and aux.
        """
        return grid_latents(self.quantize(self.features(images), draw=draw, train=train))

    def features(self, images: Array) -> Array:
        """What the quantizer is given for images `[B, H, W, 3]`: `[B, h, w, c]`, float32."""
        if self.unit_range:
            images = (images + 1) / 2
        return self.quant(self.encoder(images)).astype(jnp.float32)

    def decode(
        self, latents: Latents, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Array:
        """Decodes latents to images.

        Args:
          latents: with `values` `[B, h, w, c]`, or `ids`: of a grid `[B, h, w]`, or `[B, K]` of a square one; of a
            pyramid `[B, K]`.
          cond, draw, train: part of the contract; not used.

        Returns:
          Images `[B, H, W, 3]`, float32, about [-1, 1]: not clamped.

        Raises:
          ValueError: for latents with neither values nor ids, and for `[B, K]` ids of no square grid.
        """
        if latents.values is None and latents.ids is not None and self.latent.layout == "pyramid":
            values = self.quantize.look_up(latents.ids)
        else:
            values = grid_values(latents, self.quantize)
        images = self.decoder(self.post_quant(values)).astype(jnp.float32)
        return images * 2 - 1 if self.unit_range else images

    def codebook(self) -> Array:
        """The codes `[V, c]`, as they are compared with latents."""
        return self.quantize.codebook()

"""The identity, for generators in pixel space; and how pixels are numbered: uint8 outside, [-1, 1] inside."""

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Latents, LatentSpec


def to_float(images: Array) -> Array:
    """Images uint8 as float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def to_uint8(images: Array) -> Array:
    """Images in [-1, 1] as rounded uint8."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


class Pixels(nn.Module):
    """Images are their own latents.

    Attributes:
      scale: latents are images times this; 0.5 gives images in [-1, 1] about the standard deviation that EDM expects.
    """

    scale: float = 1.0

    @property
    def latent(self) -> LatentSpec:
        """One position per pixel."""
        return LatentSpec(layout="grid", downsample=1, channels=3, scale=self.scale)

    def encode(
        self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Latents:
        """Images `[B, H, W, 3]` in [-1, 1] to latents of the same shape."""
        return Latents(values=images * self.scale)

    def decode(
        self, latents: Latents, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Array:
        """Latents to images `[B, H, W, 3]`."""
        assert latents.values is not None
        return latents.values / self.scale

    def __call__(self, images: Array) -> Array:
        """Encodes and decodes."""
        return self.decode(self.encode(images))

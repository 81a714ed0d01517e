"""What a feature network says of an image, and how an image is made ready for it."""

import dataclasses

import jax.numpy as jnp
from flax import struct

from maskdit.contracts import Array
from maskdit.encoders import resize


@struct.dataclass
class Features:
    """What scores are made of; all float32.

    Attributes:
      pooled: one vector an image `[B, D]`: of distances, precision and recall.
      spatial: activities at places of the image `[B, S]`, for networks whose papers compare them (sFID).
      logits: scores of classes `[B, C]`, as the Inception score takes them (Inception's without their bias).
    """

    pooled: Array
    spatial: Array | None = None
    logits: Array | None = None


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From uint8 images to what a feature network sees: resized, then `(x - shift) / scale`. Part of every score.

    Attributes:
      resize: the rule, a name of `maskdit.encoders.resize.RULES`.
      size: side of the network's images.
      shift, scale: for pixels from 0 to 255, one number or one for each channel.
    """

    resize: str
    size: int
    shift: tuple[float, ...] = (127.5,)
    scale: tuple[float, ...] = (127.5,)

    def __call__(self, images: Array) -> Array:
        """Images uint8 `[B, H, W, 3]` of any size -> float32 `[B, size, size, 3]`."""
        resized = resize.RULES[self.resize](images, (self.size, self.size))
        return (resized - jnp.asarray(self.shift, jnp.float32)) / jnp.asarray(self.scale, jnp.float32)

"""The identity, for generators in pixel space; and how pixels are numbered: uint8 outside, [-1, 1] inside."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, Draw, Latents, LatentSpec, ModelError, NotFiniteError


def to_float(images: Array) -> Array:
    """Images uint8 as float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def to_uint8(images: Array) -> Array:
    """Images in [-1, 1] as rounded uint8."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def rounded(images: Array) -> tuple[Array, Array]:
    """Images `[B, H, W, 3]` in [-1, 1] as rounded uint8, and whether each is all finite, bool `[B]`; see `finite`."""
    return to_uint8(images), jnp.isfinite(images).all((1, 2, 3))


def finite(images: np.ndarray, whole: np.ndarray, first: int = 0) -> np.ndarray:
    """The images that `rounded` gave, which would not tell by themselves that they were none.

    Args:
      images: uint8 `[B, H, W, 3]`.
      whole: bool `[B]`, which of them were finite.
      first: number of the first one.

    Raises:
      NotFiniteError: where some were not, with their numbers.
    """
    bad = first + np.flatnonzero(~np.asarray(whole))
    if len(bad):
        shown = ", ".join(map(str, bad[:5])) + ", .." * (len(bad) > 5)
        raise NotFiniteError(
            f"{len(bad)} of {len(images)} images hold pixels that are no finite numbers (images {shown}): the weights "
            "or the settings are at fault; look at the run's loss, and at guidance and steps"
        )
    return images


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuses shapes that are not of images `[B, H, W, 3]`.

    Raises:
      ModelError: with the shape.
    """
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ModelError(f"images are [B, H, W, 3] with B, H and W above 0; got {list(shape)}")


def checked_images(images: np.ndarray) -> np.ndarray:
    """Images `[B, H, W, 3]` of a caller, uint8 or float in [-1, 1], as float32 in [-1, 1].

    Raises:
      ModelError: for another shape, kind or range, and numbers that are not finite.
    """
    images = np.asarray(images)
    check_shape(images.shape)
    if images.dtype == np.uint8:
        return np.asarray(to_float(jnp.asarray(images)))
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ModelError(f"images are uint8, or float in [-1, 1]; got {images.dtype}")
    if not np.isfinite(images).all() or np.abs(images).max() > 1.001:
        raise ModelError("float images are finite and lie in [-1, 1]; give uint8 images otherwise")
    return images.astype(np.float32)


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

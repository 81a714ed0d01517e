"""LPIPS: a learned distance between images (Zhang et al. 2018, arXiv 1801.03924)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.encoders import alexnet, squeezenet, vgg
from maskdit.layers.linear import Linear

Array = jax.Array
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""What trunks see is `(image - SHIFT) / SCALE`: ImageNet's mean and deviation, for images in [-1, 1]."""
EPSILON = 1e-10
"""Added to the length of a feature vector."""
TRUNKS: dict[str, tuple[Any, Any]] = {
    "vgg16": (vgg.VGG16, vgg),
    "alexnet": (alexnet.AlexNet, alexnet),
    "squeezenet": (squeezenet.SqueezeNet, squeezenet),
}


class LPIPS(nn.Module):
    """Squared differences of unit-length features, weighted by channel (version 0.1 of the published metric).

    Tokenizers are trained against the trunk `vgg16`; papers report distances of either `vgg16` or `alexnet`, which
    are different numbers. The weights of the channels begin at one: the paper's baseline without learned weights.

    Attributes:
      trunk: `vgg16`, `alexnet` or `squeezenet`.
      channels: width of each tapped layer; None for the published ones.
      dtype: precision of the convolutions; lengths, differences and their weighting are float32.

    Raises:
      ValueError: for another trunk, or another number of layers than it has.
    """

    trunk: str = "vgg16"
    channels: tuple[int, ...] | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        if self.trunk not in TRUNKS:
            raise ValueError(f"there is no trunk '{self.trunk}': use one of {', '.join(TRUNKS)}")
        cls, published = TRUNKS[self.trunk]
        channels = published.CHANNELS if self.channels is None else tuple(self.channels)
        if len(channels) != len(published.CHANNELS):
            raise ValueError(f"{self.trunk} has {len(published.CHANNELS)} layers, got channels={channels}")
        self.net = cls(channels=channels, dtype=self.dtype)
        self.lin = [Linear(1, use_bias=False, kernel_init=nn.initializers.ones_init()) for _ in channels]

    def __call__(self, images: Array, others: Array | None = None) -> Array:
        """The distance of pairs of images.

        Args:
          images: `[B, H, W, 3]` in [-1, 1].
          others: the same, to compare with; None for the images themselves, whose distance is 0: it shapes parameters.

        Returns:
          `[B]`, float32.
        """
        return sum((layer.mean((1, 2)) for layer in self.maps(images, others)), jnp.zeros(len(images)))

    def maps(self, images: Array, others: Array | None = None) -> tuple[Array, ...]:
        """The weighted squared differences at every position of every tapped layer, `[B, h, w]`; see `__call__`."""
        ours = self.features(images)
        theirs = ours if others is None else self.features(others)
        return tuple(
            lin(jnp.square(_unit(a) - _unit(b)))[..., 0]  # [B, h, w]
            for lin, a, b in zip(self.lin, ours, theirs, strict=True)
        )

    def features(self, images: Array) -> tuple[Array, ...]:
        """The tapped activities `[B, h, w, C]`, float32, of images `[B, H, W, 3]` in [-1, 1], first layer first.

        Raises:
          ValueError: for images that are too small for the trunk.
        """
        least = TRUNKS[self.trunk][1].LEAST_SIDE
        if min(images.shape[1:3]) < least:
            raise ValueError(f"{self.trunk} takes images of {least} x {least} or more, got {list(images.shape)}")
        scaled = (images.astype(jnp.float32) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
        return tuple(tap.astype(jnp.float32) for tap in self.net(scaled))


def _unit(x: Array) -> Array:
    """Features divided by their length over the channels."""
    squares = jnp.square(x).sum(-1, keepdims=True)  # [B, h, w, 1]
    some = squares > 0
    # the slope of a root at 0 is infinite, and its product with a gradient of 0 is no number
    length = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)
    return x / (length + EPSILON)

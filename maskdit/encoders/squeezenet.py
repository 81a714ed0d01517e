"""The convolutions of SqueezeNet 1.1 (Iandola et al. 2016, arXiv 1602.07360), for distances in its features."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.layers.conv import Conv

Array = jax.Array
CHANNELS = (64, 128, 256, 384, 384, 512, 512)
"""Published width of each tapped layer."""
FIRES = ((), (3, 4), (6, 7), (9,), (10,), (11,), (12,))
"""Fire modules up to each tap, by their places in the published list of layers; the first tap is the stem."""
POOLED = (3, 6, 9)
"""Fire modules before which the sides are halved."""
LEAST_SIDE = 17
"""Side of the smallest image that reaches the last layer."""


class SqueezeNet(nn.Module):
    """A convolution at half the sides, then fire modules.

    Attributes:
      channels: width of each tapped layer; a fire module squeezes to an eighth of its width.
      dtype: precision of the convolutions.
    """

    channels: tuple[int, ...] = CHANNELS
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """The activities at the seven taps, `[B, h, w, channels[i]]`, of scaled images `[B, H, W, 3]`."""
        taps = []
        for width, fires in zip(self.channels, FIRES, strict=True):
            if not fires:
                x = nn.relu(Conv(width, stride=2, padding=(0, 0), dtype=self.dtype, name="conv")(x))
            for fire in fires:
                x = _halved(x) if fire in POOLED else x
                x = self._fire(x, width, f"fire_{fire}")
            taps.append(x)
        return tuple(taps)

    def _fire(self, x: Array, width: int, name: str) -> Array:
        """1x1 to an eighth, then 1x1 and 3x3 side by side."""
        x = nn.relu(Conv(width // 8, kernel=1, dtype=self.dtype, name=f"{name}_squeeze")(x))
        sides = [
            Conv(width // 2, kernel=kernel, dtype=self.dtype, name=f"{name}_expand{kernel}")(x) for kernel in (1, 3)
        ]
        return nn.relu(jnp.concatenate(sides, -1))


def _halved(x: Array) -> Array:
    """Maxima of 3x3 windows, stride 2; a window that sticks out on the right or at the bottom counts too."""
    beyond = [(0, (-(-(side - 3) // 2)) * 2 + 3 - side) for side in x.shape[1:3]]
    return nn.max_pool(x, (3, 3), (2, 2), padding=beyond)

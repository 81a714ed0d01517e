"""The convolutions of AlexNet of one column (Krizhevsky 2014, arXiv 1404.5997), for distances in its features."""

import flax.linen as nn
import jax

from maskdit.layers.conv import Conv

Array = jax.Array
CHANNELS = (64, 192, 384, 256, 256)
"""Published width of each convolution."""
KERNELS = (11, 5, 3, 3, 3)
LEAST_SIDE = 31
"""Side of the smallest image that reaches the last convolution."""


class AlexNet(nn.Module):
    """Five convolutions with ReLU, the first at a quarter of the sides; maxima of 3x3 windows precede the next two.

    Attributes:
      channels: width of each convolution.
      dtype: precision of the convolutions.
    """

    channels: tuple[int, ...] = CHANNELS
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """The activities after every convolution, `[B, h, w, channels[i]]`, of scaled images `[B, H, W, 3]`."""
        taps = []
        for i, (width, kernel) in enumerate(zip(self.channels, KERNELS, strict=True)):
            if i in (1, 2):
                x = nn.max_pool(x, (3, 3), (2, 2))
            # the first takes two zeros a side, less than half its window
            place: dict = {"stride": 4, "padding": (2, 2)} if i == 0 else {}
            x = nn.relu(Conv(width, kernel=kernel, dtype=self.dtype, name=f"conv_{i}", **place)(x))
            taps.append(x)
        return tuple(taps)

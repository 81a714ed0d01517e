"""The convolutions of VGG16 (Simonyan and Zisserman 2015, arXiv 1409.1556), for distances in its features."""

import flax.linen as nn
import jax

from maskdit.layers.conv import Conv

Array = jax.Array
BLOCKS = (2, 2, 3, 3, 3)
"""Convolutions of each stage."""
CHANNELS = (64, 128, 256, 512, 512)
"""Published width of each stage."""
LEAST_SIDE = 16
"""Side of the smallest image that reaches the last stage."""


class VGG16(nn.Module):
    """Five stages of 3x3 convolutions with ReLU, each after the first at half the sides of the one before.

    Attributes:
      channels: width of each stage.
      dtype: precision of the convolutions.
    """

    channels: tuple[int, ...] = CHANNELS
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """The last activities of every stage, `[B, H / 2**i, W / 2**i, channels[i]]`, of scaled images `[B, H, W, 3]`.

        In the paper's count these are relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.
        """
        taps = []
        for stage, (width, blocks) in enumerate(zip(self.channels, BLOCKS, strict=True)):
            if stage:
                x = nn.max_pool(x, (2, 2), (2, 2))  # [B, H/2, W/2, C]
            for block in range(blocks):
                x = nn.relu(Conv(width, dtype=self.dtype, name=f"conv_{stage}_{block}")(x))
            taps.append(x)
        return tuple(taps)

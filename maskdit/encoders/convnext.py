"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545): an ImageNet classifier, whose scores serve as perceptual features."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.layers.conv import Conv
from maskdit.layers.linear import Linear
from maskdit.layers.norm import layer_norm

Array = jax.Array
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1]; the network sees images less the one, divided by the other."""
EPSILON = 1e-6
STEM = 4
"""Side in pixels of the patches that the first convolution takes."""


class ConvNeXt(nn.Module):
    """Stages of residual blocks around 7x7 depthwise convolutions, each after the first at half the sides.

    Attributes:
      channels: width of each stage.
      depths: blocks of each stage.
      classes: number of classes.
      dtype: precision of convolutions and products; norms are float32.

    Raises:
      ValueError: for another number of depths than of widths.
    """

    channels: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 27, 3)
    classes: int = 1000
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        if len(self.channels) != len(self.depths):
            raise ValueError(f"a stage has a width and a depth: got channels={self.channels}, depths={self.depths}")
        self.stem = Conv(self.channels[0], kernel=STEM, stride=STEM, padding=(0, 0), dtype=self.dtype)
        self.stem_norm = layer_norm(None, EPSILON)
        self.down_norm = [layer_norm(None, EPSILON) for _ in self.channels[1:]]
        self.down = [Conv(width, kernel=2, stride=2, padding=(0, 0), dtype=self.dtype) for width in self.channels[1:]]
        self.stage = [
            [Block(width, dtype=self.dtype) for _ in range(depth)]
            for width, depth in zip(self.channels, self.depths, strict=True)
        ]
        self.norm = layer_norm(None, EPSILON)
        self.head = Linear(self.classes, dtype=self.dtype)

    def __call__(self, images: Array) -> Array:
        """Class scores `[B, classes]`; see `logits`."""
        return self.logits(images)

    def logits(self, images: Array) -> Array:
        """Class scores `[B, classes]`, float32, of images `[B, H, W, 3]` in [-1, 1]."""
        return self.head(self.features(images)).astype(jnp.float32)

    def features(self, images: Array) -> Array:
        """What the class scores are a product of: `[B, channels[-1]]`, float32, of images `[B, H, W, 3]` in [-1, 1].

        Raises:
          ValueError: for images that are too small.
        """
        least = STEM * 2 ** (len(self.channels) - 1)
        if min(images.shape[1:3]) < least:
            raise ValueError(f"this ConvNeXt takes images of {least} x {least} or more, got {list(images.shape)}")
        x = ((images.astype(jnp.float32) + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)
        x = self.stem_norm(self.stem(x))  # [B, H/4, W/4, C]
        for i, blocks in enumerate(self.stage):
            if i:
                x = self.down[i - 1](self.down_norm[i - 1](x))  # [B, h/2, w/2, C]
            for block in blocks:
                x = block(x)
        return self.norm(x.astype(jnp.float32).mean((1, 2)))  # [B, C]


class Block(nn.Module):
    """A depthwise convolution and an inverted bottleneck, beside the identity.

    Attributes:
      features: width.
      dtype: precision of convolution and products.
    """

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, h, w, features]` to the same shape."""
        y = DepthwiseConv(dtype=self.dtype, name="depthwise")(x)
        y = layer_norm("norm", EPSILON)(y)
        y = nn.gelu(Linear(4 * self.features, dtype=self.dtype, name="wide")(y), approximate=False)
        y = Linear(self.features, dtype=self.dtype, name="narrow")(y)
        scale = self.param("scale", nn.initializers.constant(1e-6), (self.features,), jnp.float32)
        return x + y * scale


class DepthwiseConv(nn.Module):
    """A 7x7 convolution of each channel by itself, over NHWC maps; zeros keep the size.

    Attributes:
      kernel: side of the window.
      dtype: precision of the product.
    """

    kernel: int = 7
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, C]` to the same shape."""
        channels = x.shape[-1]
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (self.kernel, self.kernel, 1, channels), jnp.float32
        )
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        pad = (self.kernel // 2, self.kernel // 2)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding=(pad, pad),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        return x + bias.astype(self.dtype)

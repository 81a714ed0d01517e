"""Discriminators of images: each gives logits that are high where it takes an image, or a patch of it, for real.

All take images `[B, H, W, 3]` in [-1, 1] and return logits in float32. None has state: the batch norm that published
patch discriminators use is replaced by norms within an example.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Array
from maskdit.layers.conv import Conv, GroupNorm
from maskdit.layers.linear import Linear

NORMS = ("group", "instance", "none")
KERNELS = {3: (1, 2, 1), 4: (1, 3, 3, 1), 5: (1, 4, 6, 4, 1)}
"""Rows of binomial blur kernels, by size."""
LOGITS_SIDE = 16
"""Side of TiTok's map of logits."""
BLUR_EPSILON = 1e-5


class PatchDiscriminator(nn.Module):
    """The patch discriminator of pix2pix (Isola et al. 2017, arXiv 1611.07004), used by VQGAN and latent diffusion.

    4x4 convolutions: `layers` of stride 2, one of stride 1, and one to a logit for each overlapping patch. Widths
    double to at most eight times the first.

    Published code normalises over the batch with running statistics. Here an example is judged by itself: with
    `group` or `instance` norms, or none.

    Attributes:
      channels: width of the first layer.
      layers: convolutions of stride 2.
      norm: `group`, `instance` (both with a learned scale and bias) or `none`; the first layer has none.
      groups: groups of neighbouring channels where `norm` is `group`.
      dtype: precision of convolutions; norms are float32.

    Raises:
      ValueError: for another norm, and fewer than one layer.
    """

    channels: int = 64
    layers: int = 3
    norm: str = "group"
    groups: int = 32
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm is one of {', '.join(NORMS)}, got '{self.norm}'")
        if self.layers < 1:
            raise ValueError(f"layers must be 1 or more, got {self.layers}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps images `[B, H, W, 3]` in [-1, 1] to logits `[B, h, w, 1]`; of 256 pixels and 3 layers h is 30.

        Raises:
          ValueError: for images that are too small for a logit.
        """
        least = 3 * 2**self.layers
        if min(images.shape[1:3]) < least:
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]} give no logit with layers={self.layers}: take sides of "
                f"{least} or more, or fewer layers"
            )
        part: dict[str, Any] = {
            "kernel": 4,
            "padding": (1, 1),
            "dtype": self.dtype,
            "kernel_init": nn.initializers.normal(0.02),
        }
        x = nn.leaky_relu(Conv(self.channels, stride=2, name="conv_in", **part)(images), 0.2)  # [B, H/2, W/2, C]
        for i in range(1, self.layers + 1):
            width = self.channels * min(2**i, 8)
            stride = 2 if i < self.layers else 1
            # a norm of single channels takes a bias before it away
            x = Conv(width, stride=stride, use_bias=self.norm != "instance", name=f"conv_{i}", **part)(x)
            if self.norm != "none":
                groups = width if self.norm == "instance" else self.groups
                x = GroupNorm(groups, epsilon=1e-5, name=f"norm_{i}")(x)
            x = nn.leaky_relu(x, 0.2)
        return Conv(1, name="conv_out", **part)(x).astype(jnp.float32)


class BlurDiscriminator(nn.Module):
    """TiTok's discriminator (Yu et al. 2024, arXiv 2406.07550; first used by MaskBit, Weber et al. 2024).

    Stages of a 3x3 convolution and a blurred halving; the map is pooled to 16x16 whatever the image's size, so that
    all sizes give as many logits.

    Attributes:
      channels: width of the first convolution and of the first stage; each later stage doubles it.
      stages: halvings.
      blur: size of the blur kernel: 3, 4 or 5; 0 for means of 2x2 pixels instead.
      groups: groups of the group norms.
      in_channels: image channels.
      unit_range: whether images are moved from [-1, 1] to [0, 1] first, which published weights were trained on.
      dtype: precision of convolutions; norms are float32.

    Raises:
      ValueError: for another blur, and fewer than one stage.
    """

    channels: int = 128
    stages: int = 3
    blur: int = 4
    groups: int = 32
    in_channels: int = 3
    unit_range: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.blur not in (0, *KERNELS):
            raise ValueError(f"blur is one of 0, {', '.join(map(str, KERNELS))}, got {self.blur}")
        if self.stages < 1:
            raise ValueError(f"stages must be 1 or more, got {self.stages}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps images `[B, H, W, in_channels]` in [-1, 1] to logits `[B, 16, 16, 1]`.

        Raises:
          ValueError: for another number of channels, and images of which nothing is left after the stages.
        """
        least = 2**self.stages
        if images.shape[-1] != self.in_channels or min(images.shape[1:3]) < least:
            raise ValueError(
                f"this discriminator takes images [B, H, W, {self.in_channels}] with sides of {least} or more, got "
                f"{list(images.shape)}"
            )
        x = (images + 1) / 2 if self.unit_range else images
        x = nn.leaky_relu(Conv(self.channels, kernel=5, dtype=self.dtype, name="conv_in")(x), 0.1)
        for i in range(self.stages):
            width = self.channels * 2**i
            x = BlurStage(width, self.blur, self.groups, self.dtype, name=f"stage_{i}")(x)  # [B, H/2, W/2, C]
        x = _pooled(_pooled(x, 1, LOGITS_SIDE), 2, LOGITS_SIDE)  # [B, 16, 16, C]
        x = nn.leaky_relu(Conv(x.shape[-1], kernel=1, dtype=self.dtype, name="conv_mix")(x), 0.1)
        return Conv(1, kernel=5, dtype=self.dtype, name="conv_out")(x).astype(jnp.float32)


class BlurStage(nn.Module):
    """One halving of `BlurDiscriminator`, whose fields these are; `features` are the channels that come out."""

    features: int
    blur: int
    groups: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, C]` to `[B, H/2, W/2, features]`."""
        x = Conv(self.features, dtype=self.dtype, name="conv")(x)
        if self.blur:
            # published code pads for a kernel of 4 whatever its size; odd sides get the third zero behind
            for axis in (1, 2):
                odd = x.shape[axis] % 2
                x = _filtered(x, axis, KERNELS[self.blur], (1, 1 + odd), 2)
        else:
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        return nn.leaky_relu(GroupNorm(self.groups, epsilon=BLUR_EPSILON, name="norm")(x), 0.1)


class StyleDiscriminator(nn.Module):
    """The residual discriminator of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958, section 4.1).

    Residual blocks with blurred halving down to 4x4, the deviation within small groups of examples as one more channel
    (Karras et al. 2018, arXiv 1710.10196, section 3), and one logit an image. Weights are kept at unit variance and
    scaled where they are used (equalised learning rate), so that all learn equally fast under Adam.

    Attributes:
      size: side of the square images, a power of two of 8 or more.
      channel_base: a block at side `s` is `channel_base / s` wide,
      channel_max: but no wider than this.
      group: examples whose deviation is measured together: the largest divisor of the batch up to this number.
      dtype: precision of convolutions and products.

    Raises:
      ValueError: for another size, and widths or a group below one.
    """

    size: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    group: int = 4
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.size < 8 or self.size & (self.size - 1):
            raise ValueError(f"size is a power of two of 8 or more, got {self.size}")
        if self.channel_base < self.size or min(self.channel_max, self.group) < 1:
            raise ValueError(
                f"channel_base must be the size or more, channel_max and group 1 or more; got {self.channel_base} for "
                f"size {self.size}, {self.channel_max} and {self.group}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps images `[B, size, size, 3]` in [-1, 1] to logits `[B, 1]`.

        Raises:
          ValueError: for images of another size.
        """
        if images.shape[1:3] != (self.size, self.size):
            raise ValueError(f"this discriminator takes images [B, {self.size}, {self.size}, 3], got {images.shape}")
        x = _activated(EqualConv(self._width(self.size), kernel=1, dtype=self.dtype, name="conv_in")(images))
        side = self.size
        while side > 4:
            widths = (self._width(side), self._width(side // 2))
            x = StyleBlock(*widths, dtype=self.dtype, name=f"block_{side}")(x)  # [B, side/2, side/2, C]
            side //= 2
        x = jnp.concatenate([x, _deviation(x, self.group)], axis=-1)  # [B, 4, 4, C + 1]
        x = _activated(EqualConv(self._width(4), dtype=self.dtype, name="conv_out")(x))
        x = x.reshape(len(x), -1)  # [B, 16 C]
        for name, features in (("dense", self._width(4)), ("logit", 1)):
            init = nn.initializers.normal(1.0)
            layer = Linear(features, dtype=self.dtype, kernel_init=init, name=name)
            x = layer(x / math.sqrt(x.shape[-1]))
            x = _activated(x) if name == "dense" else x
        return x.astype(jnp.float32)  # [B, 1]

    def _width(self, side: int) -> int:
        return min(self.channel_base // side, self.channel_max)


class StyleBlock(nn.Module):
    """Two convolutions beside a blurred 1x1 one; halves the side. `width` goes in, `features` come out."""

    width: int
    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, width]` to `[B, H/2, W/2, features]`."""
        skip = _blurred(x, (1, 1), 2)
        skip = EqualConv(self.features, kernel=1, use_bias=False, dtype=self.dtype, name="skip")(skip)
        x = _activated(EqualConv(self.width, dtype=self.dtype, name="conv1")(x))
        x = _blurred(x, (2, 2), 1)  # [B, H + 1, W + 1, C], which the unpadded convolution below halves
        down = EqualConv(self.features, stride=2, padding=(0, 0), dtype=self.dtype, name="conv2")
        return (_activated(down(x)) + skip) / math.sqrt(2)


class EqualConv(Conv):
    """A `Conv` with unit-variance weights, scaled by `1 / sqrt(fan in)` as it runs."""

    kernel_init: Any = nn.initializers.normal(1.0)

    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, in]` to `[B, H', W', features]`."""
        # the scale goes to the input, where it does the same and leaves the kernel as it is stored
        return super().__call__(x / math.sqrt(self.kernel**2 * x.shape[-1]))


def _activated(x: Array) -> Array:
    """Leaky ReLU that keeps the second moment of its input, about."""
    return nn.leaky_relu(x, 0.2) * math.sqrt(2)


def _blurred(x: Array, padding: tuple[int, int], stride: int) -> Array:
    for axis in (1, 2):
        x = _filtered(x, axis, KERNELS[4], padding, stride)
    return x


def _filtered(x: Array, axis: int, kernel: tuple[int, ...], padding: tuple[int, int], stride: int) -> Array:
    """Correlates one axis of `x` `[B, H, W, C]` with a kernel, normalised to sum 1, after zeros on both sides.

    Sums of slices: a convolution of single channels is slow on a CPU, its gradient more so.
    """
    x = jnp.pad(x, [padding if i == axis else (0, 0) for i in range(x.ndim)])
    size = x.shape[axis]
    if size < len(kernel):
        raise ValueError(f"a blur kernel of {len(kernel)} finds a side of {size}, zeros included: take larger images")
    last = size - len(kernel)
    slices = (jax.lax.slice_in_dim(x, i, last + i + 1, stride, axis) for i in range(len(kernel)))
    weights = (weight / sum(kernel) for weight in kernel)
    terms = [part * weight for part, weight in zip(slices, weights, strict=True)]
    return sum(terms[1:], terms[0])


def _pooled(x: Array, axis: int, cells: int) -> Array:
    """The largest entries of `cells` windows along an axis; window i covers `floor(i n / cells)` to
    `ceil((i + 1) n / cells) - 1` of n entries, so that windows of few entries share them."""
    n, shape = x.shape[axis], x.shape
    if n % cells:
        starts = [i * n // cells for i in range(cells)]
        ends = [-(-(i + 1) * n // cells) for i in range(cells)]
        width = max(end - start for start, end in zip(starts, ends, strict=True))
        # shorter windows repeat their last entry, which does not change the largest
        index = [min(start + j, end - 1) for start, end in zip(starts, ends, strict=True) for j in range(width)]
        x = jnp.take(x, jnp.asarray(index), axis=axis)
    return x.reshape(*shape[:axis], cells, -1, *shape[axis + 1 :]).max(axis + 1)


def _deviation(x: Array, most: int) -> Array:
    """The standard deviation over examples of a group, its mean over places and channels: `[B, H, W, 1]` of `x`
    `[B, H, W, C]`. Groups are neighbours in the batch, which lie on one device."""
    group = next(n for n in range(min(most, len(x)), 0, -1) if len(x) % n == 0)
    grouped = x.astype(jnp.float32).reshape(-1, group, *x.shape[1:])  # [B/G, G, H, W, C]
    variance = jnp.square(grouped - grouped.mean(1, keepdims=True)).mean(1)
    deviation = jnp.sqrt(variance + 1e-8).mean((1, 2, 3))  # [B/G]
    return jnp.broadcast_to(deviation.repeat(group)[:, None, None, None], (*x.shape[:3], 1)).astype(x.dtype)

"""ResNet-50 (He et al. 2015, arXiv 1512.03385), a classifier of ImageNet: features for scores and for tokenizers.

Keras's variant: a block that halves the sides does so in its first 1x1 convolution, as in the paper, and convolutions
have biases. Batch norms have fixed statistics.
"""

import contextlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Array
from maskdit.encoders.features import Features, Preprocessing
from maskdit.layers.conv import Conv
from maskdit.layers.linear import Linear

MEAN = (123.68, 116.779, 103.939)
"""Of ImageNet's pixels from 0 to 255, in the order red, green, blue."""
EXPANSION = 4
"""Output channels of a block for each one of its 3x3 convolution."""
RULES = ("clean", "tf1-bilinear", "torch-bilinear", "pil-bicubic")
"""How images may be resized for it; no published score prescribes one."""


class ResNet50(nn.Module):
    """Stages of bottleneck blocks, each after the first at half the sides and twice the channels of the one before.

    Attributes:
      width: channels of the first convolution; stage `i` gives `4 * width * 2**i`.
      blocks: blocks of each stage.
      classes: number of classes.
      epsilon: added to the variances of the norms.
      size: side of the images that scores give it.
      dtype: precision of the convolutions; norms, the mean over places and class scores are float32. In float32,
        products are whole on every device, so that figures are comparable.

    Raises:
      ValueError: for a stage without blocks.
    """

    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    classes: int = 1000
    epsilon: float = 1e-3
    size: int = 224
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"each stage has a block at least: got blocks={self.blocks}")
        self.conv = Conv(self.width, kernel=7, stride=2, padding=(3, 3), dtype=self.dtype)
        self.norm = FixedBatchNorm(self.epsilon)
        self.stage = [
            [
                Bottleneck(
                    features=self.width * 2**i,
                    stride=2 if i and not j else 1,
                    shortcut=not j,
                    epsilon=self.epsilon,
                    dtype=self.dtype,
                )
                for j in range(count)
            ]
            for i, count in enumerate(self.blocks)
        ]
        self.head = Linear(self.classes)

    @property
    def PREPROCESSING(self) -> Mapping[str, Preprocessing]:
        """How images are made ready, by the resize rule: pixels from 0 to 255 less `MEAN`."""
        return {rule: Preprocessing(rule, self.size, MEAN, (1.0,)) for rule in RULES}

    def __call__(self, x: Array) -> Features:
        """Features of images, all float32.

        Args:
          x: images `[B, H, W, 3]` of any size as `PREPROCESSING` gives them, in the order red, green, blue.

        Returns:
          `pooled`, the mean over places of the last stage `[B, 32 * width]` for four stages, and `logits`, the class
          scores before the softmax with their bias `[B, classes]`; no `spatial`.
        """
        pooled = self.stages(x)[-1].astype(jnp.float32).mean((1, 2))  # [B, C]
        with self._whole():
            return Features(pooled, logits=self.head(pooled))

    def stages(self, x: Array) -> tuple[Array, ...]:
        """The maps after each stage, `[B, H / 2**(i + 2), W / 2**(i + 2), 4 * width * 2**i]` with sides rounded up.

        Args:
          x: as that of `__call__`.
        """
        x = x[..., ::-1]  # the network was trained on blue, green, red
        maps = []
        with self._whole():
            x = nn.relu(self.norm(self.conv(x)))  # [B, H/2, W/2, width]
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # [B, H/4, W/4, width]
            for blocks in self.stage:
                for block in blocks:
                    x = block(x)
                maps.append(x)
        return tuple(maps)

    def _whole(self) -> contextlib.AbstractContextManager:
        """Keeps devices from rounding the factors of products, where no lower precision was asked for."""
        return jax.default_matmul_precision("float32") if self.dtype == "float32" else contextlib.nullcontext()


class Bottleneck(nn.Module):
    """Convolutions of side 1, 3 and 1, each with its norm, beside the identity or a 1x1 convolution.

    Attributes:
      features: channels of the first two convolutions; the last has `EXPANSION` times as many.
      stride: of the first convolution and of the one beside.
      shortcut: whether a convolution with a norm stands beside, in place of the identity.
      epsilon: of the norms.
      dtype: precision of the convolutions.
    """

    features: int
    stride: int = 1
    shortcut: bool = False
    epsilon: float = 1e-3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, C]` to `[B, H / stride, W / stride, EXPANSION * features]`, sides rounded up."""
        y = nn.relu(self._part("0", x, self.features, stride=self.stride))
        y = nn.relu(self._part("1", y, self.features, kernel=3))
        y = self._part("2", y, EXPANSION * self.features)
        if self.shortcut:
            x = self._part("shortcut", x, EXPANSION * self.features, stride=self.stride)
        return nn.relu(y + x)

    def _part(self, name: str, x: Array, features: int, kernel: int = 1, stride: int = 1) -> Array:
        x = Conv(features, kernel=kernel, stride=stride, dtype=self.dtype, name=f"conv_{name}")(x)
        return FixedBatchNorm(self.epsilon, name=f"norm_{name}")(x)


class FixedBatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167) by the mean and variance that training left.

    The statistics are parameters, so that they come and go with the weights; computed in float32.

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the channels of `x` `[..., C]`; shape and dtype stay."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        mean = self.param("mean", nn.initializers.zeros_init(), shape, jnp.float32)
        variance = self.param("variance", nn.initializers.ones_init(), shape, jnp.float32)
        rate = scale / jnp.sqrt(variance + self.epsilon)
        return (x.astype(jnp.float32) * rate + (bias - mean * rate)).astype(x.dtype)

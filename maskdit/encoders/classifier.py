"""A small convolutional classifier with one head per label."""

from collections.abc import Mapping

import flax.linen as nn
import jax
from flax import struct

from maskdit.layers.conv import Conv, GroupNorm
from maskdit.layers.linear import Linear

Array = jax.Array


@struct.dataclass
class Classified:
    """What the classifier says of images.

    Attributes:
      logits: by label name, `[B, classes]`.
      features: pooled features, `[B, features]`; none is negative.
    """

    logits: dict[str, Array]
    features: Array


class ConvClassifier(nn.Module):
    """Pre-activation residual network (He et al. 2016, arXiv 1603.05027) with group norm, so that it keeps no statistics.

    An overlapping patch convolution, then a stage for each width; each stage after the first halves the sides. Features
    are the mean over all places of a last 1 x 1 convolution, normalised and cut at zero.

    Attributes:
      classes: label name -> number of classes.
      stem: step of the first convolution in pixels; its window is twice as wide.
      widths: channels of the stages.
      blocks: residual blocks in a stage.
      features: width of the feature layer.
      groups: groups of the norms; must divide all widths.
      dtype: precision of the products.
    """

    classes: Mapping[str, int]
    stem: int = 4
    widths: tuple[int, ...] = (64, 128)
    blocks: int = 1
    features: int = 64
    groups: int = 8
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array) -> Classified:
        """Classifies images `[B, H, W, 3]` in [-1, 1]; sides are multiples of `stem * 2 ** (len(widths) - 1)`."""
        pad = (self.stem // 2, self.stem - self.stem // 2)
        stem = Conv(self.widths[0], 2 * self.stem, self.stem, pad, dtype=self.dtype, name="stem")
        x = stem(images)  # [B, H/stem, W/stem, widths[0]]
        for stage, width in enumerate(self.widths):
            if stage:
                x = self._activated(x, f"norm_{stage}")
                x = Conv(width, stride=2, dtype=self.dtype, name=f"down_{stage}")(x)
            for block in range(self.blocks):
                h = x
                for part in range(2):
                    h = self._activated(h, f"norm_{stage}_{block}_{part}")
                    h = Conv(width, dtype=self.dtype, name=f"conv_{stage}_{block}_{part}")(h)
                x = x + h
        x = self._activated(x, "norm_last")
        x = Conv(self.features, kernel=1, dtype=self.dtype, name="features")(x)
        pooled = self._activated(x, "norm_features").mean((1, 2))  # [B, features]
        logits = {name: Linear(count, name=f"head_{name}")(pooled) for name, count in self.classes.items()}
        return Classified(logits=logits, features=pooled)

    def _activated(self, x: Array, name: str) -> Array:
        return nn.relu(GroupNorm(self.groups, name=name)(x))

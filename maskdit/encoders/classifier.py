"""A small convolutional classifier with one head per label."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
    """Residual stages (He et al. 2016, arXiv 1603.05027), each after the first at half the sides of the one before.

    Features are a dense layer over the mean activities of all stages: early ones see colours and textures, late ones
    what is shown. Branches are group-normed, so that no statistics are kept; the trunk is not, since absolute colours
    tell styles apart.

    Attributes:
      classes: label name -> number of classes.
      stem: step of the first convolution in pixels; its window is twice as wide.
      widths: channels of the stages.
      blocks: residual blocks of the stages.
      features: width of the feature layer.
      groups: groups of the norms; must divide all widths.
      dtype: precision of the convolutions.
    """

    classes: Mapping[str, int]
    stem: int = 2
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (0, 1, 1)
    features: int = 64
    groups: int = 8
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Array) -> Classified:
        """Classifies images `[B, H, W, 3]` in [-1, 1]; sides are multiples of `stem * 2 ** (len(widths) - 1)`."""
        x, pooled = 1 - images, []  # white is zero: background and padding excite nothing
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            if stage:
                x = self._conv(width, f"down_{stage}", stride=2)(x)
            else:
                pad = (self.stem // 2, self.stem - self.stem // 2)
                x = self._conv(width, "stem", kernel=2 * self.stem, stride=self.stem, padding=pad)(x)
            for block in range(blocks):
                h = x
                for part in range(2):
                    h = nn.relu(GroupNorm(self.groups, name=f"norm_{stage}_{block}_{part}")(h))
                    h = self._conv(width, f"conv_{stage}_{block}_{part}")(h)
                x = x + h
            x = nn.relu(x)
            pooled.append(x.mean((1, 2)))  # [B, width]
        means = GroupNorm(1, name="norm_means")(jnp.concatenate(pooled, -1)[:, None, None])[:, 0, 0]
        features = nn.relu(Linear(self.features, name="features")(means))
        logits = {name: Linear(count, name=f"head_{name}")(features) for name, count in self.classes.items()}
        return Classified(logits=logits, features=features)

    def _conv(self, width: int, name: str, **settings: Any) -> Conv:
        return Conv(width, dtype=self.dtype, name=name, **settings)

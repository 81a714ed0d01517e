"""Inception-v3 as the FID sees it (Szegedy et al. 2015, arXiv 1512.00567; FID: Heusel et al. 2017, arXiv 1706.08500).

The network is that of the TensorFlow graph of 2015-12-05, which every published FID, sFID and Inception score is of. It
is not torchvision's ImageNet model: it has 1008 classes, averages leave padding out, and the last block's pool takes
the largest.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.encoders.features import Features, Preprocessing
from maskdit.layers.linear import Linear

Array = jax.Array
LEAST_SIDE = 75
"""Side of the smallest image that reaches the last block."""
SPATIAL_CHANNELS = 7
"""Of the output of `Mixed_6d`, its first branch: what sFID compares (Nash et al. 2021, arXiv 2103.03841)."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of the network.

    Attributes:
      name: published name inside its block.
      features: output channels.
      kernel: height and width of the window.
      stride: its step.
      padded: whether zeros keep the size at stride 1.
    """

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


Fork = tuple[Layer, ...]
"""Layers that see one map; their outputs are joined."""
Branch = tuple[Layer | Fork | Callable[[Array], Array], ...]
"""Steps of a branch: layers, forks, poolings."""


def _halved(x: Array) -> Array:
    """The largest of 3x3 windows at every second place that has a whole one."""
    return nn.max_pool(x, (3, 3), (2, 2))


def _largest(x: Array) -> Array:
    """The largest of 3x3 windows at every place."""
    return nn.max_pool(x, (3, 3), padding="SAME")


def _mean(x: Array) -> Array:
    """The mean of the pixels that a 3x3 window at every place has."""
    return nn.avg_pool(x.astype(jnp.float32), (3, 3), padding="SAME", count_include_pad=False)


def _fine(pooled: int) -> tuple[Branch, ...]:
    """A block at 35 x 35."""
    return (
        (Layer("branch1x1", 64),),
        (Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))),
        (Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3))),
        (_mean, Layer("branch_pool", pooled)),
    )


def _middle(inner: int) -> tuple[Branch, ...]:
    """A block at 17 x 17: 7x7 windows as 1x7 after 7x1, or the other way round."""
    double = [(f"branch7x7dbl_{i}", inner, (7, 1) if i % 2 == 0 else (1, 7)) for i in (2, 3, 4)]
    return (
        (Layer("branch1x1", 192),),
        (Layer("branch7x7_1", inner), Layer("branch7x7_2", inner, (1, 7)), Layer("branch7x7_3", 192, (7, 1))),
        (Layer("branch7x7dbl_1", inner), *(Layer(*layer) for layer in double), Layer("branch7x7dbl_5", 192, (1, 7))),
        (_mean, Layer("branch_pool", 192)),
    )


def _coarse(pool: Callable[[Array], Array]) -> tuple[Branch, ...]:
    """A block at 8 x 8."""
    return (
        (Layer("branch1x1", 320),),
        (Layer("branch3x3_1", 384), (Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1)))),
        (
            Layer("branch3x3dbl_1", 448),
            Layer("branch3x3dbl_2", 384, (3, 3)),
            (Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Layer("branch_pool", 192)),
    )


STEM: dict[str, Branch] = {
    "64": (
        Layer("Conv2d_1a_3x3", 32, (3, 3), stride=2, padded=False),
        Layer("Conv2d_2a_3x3", 32, (3, 3), padded=False),
        Layer("Conv2d_2b_3x3", 64, (3, 3)),
        _halved,
    ),
    "192": (Layer("Conv2d_3b_1x1", 80), Layer("Conv2d_4a_3x3", 192, (3, 3), padded=False), _halved),
}
"""What is before the blocks; each part is named by the activities after it."""
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _fine(32),
    "Mixed_5c": _fine(64),
    "Mixed_5d": _fine(64),
    "Mixed_6a": (
        (Layer("branch3x3", 384, (3, 3), stride=2, padded=False),),
        (
            Layer("branch3x3dbl_1", 64),
            Layer("branch3x3dbl_2", 96, (3, 3)),
            Layer("branch3x3dbl_3", 96, (3, 3), stride=2, padded=False),
        ),
        (_halved,),
    ),
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": (
        (Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), stride=2, padded=False)),
        (
            Layer("branch7x7x3_1", 192),
            Layer("branch7x7x3_2", 192, (1, 7)),
            Layer("branch7x7x3_3", 192, (7, 1)),
            Layer("branch7x7x3_4", 192, (3, 3), stride=2, padded=False),
        ),
        (_halved,),
    ),
    "Mixed_7b": _coarse(_mean),
    "Mixed_7c": _coarse(_largest),
}
"""The blocks in order: branches that see one map, and whose outputs are joined in this order."""


def layers(branch: Branch) -> list[Layer]:
    """The convolutions of a branch in order."""
    return [
        layer for step in branch for layer in (step if isinstance(step, tuple) else (step,)) if isinstance(layer, Layer)
    ]


class InceptionV3(nn.Module):
    """The FID's Inception-v3. At 299 x 299, maps have sides 149, 147, 147, 73, 73, 71, 35, 17 and 8.

    Attributes:
      num_classes: number of classes.
      epsilon: added to the variances of batch norms.
      size: side of the images that the published measures give it.
      dtype: precision of the convolutions; norms, averages and class scores are float32. In float32 products are whole
        on every device, so that figures are comparable.
    """

    num_classes: int = 1008
    epsilon: float = 1e-3
    size: int = 299
    dtype: str = "float32"

    @property
    def PREPROCESSING(self) -> Mapping[str, Preprocessing]:
        """How published codes resize and scale, by the resize rule.

        `tf1-bilinear` is that of ADM's evaluator and torch-fidelity, `torch-bilinear` of pytorch-fid, `clean` of
        clean-fid (Parmar et al. 2022, arXiv 2104.11222).
        """
        shifts = {"tf1-bilinear": 128.0, "torch-bilinear": 127.5, "clean": 128.0}
        return {rule: Preprocessing(rule, self.size, (shift,), (shift,)) for rule, shift in shifts.items()}

    def __call__(self, x: Array) -> Features:
        """What scores are made of.

        Args:
          x: images `[B, size, size, 3]` as `PREPROCESSING` gives them.

        Returns:
          `pooled` `[B, 2048]`; `spatial` `[B, 2023]` at 299 x 299, places before channels; `logits` `[B, num_classes]`
          without their bias.
        """
        found = self.activities(x)
        return Features(pooled=found["2048"], spatial=found["spatial"], logits=found["logits_unbiased"])

    @nn.compact
    def activities(self, x: Array) -> dict[str, Array]:
        """All activities that published codes offer; what is not taken is not computed in a jitted program.

        Args:
          x: as `__call__`.

        Returns:
          All float32: `64`, `192`, `768` and `2048`, averages over the map of so many channels; `spatial`;
          `logits_unbiased` and `logits`.

        Raises:
          ValueError: for images that are too small.
        """
        if min(x.shape[1:3]) < LEAST_SIDE and not self.is_initializing():  # parameters fit images of any side
            raise ValueError(f"Inception takes images of {LEAST_SIDE} x {LEAST_SIDE} or more, got {list(x.shape)}")
        found: dict[str, Array] = {}
        with jax.default_matmul_precision("float32") if self.dtype == "float32" else contextlib.nullcontext():
            for name, steps in STEM.items():
                x = _run(self._made, steps, x)
                found[name] = _average(x)
            for name, branches in BLOCKS.items():
                x = Mixed(branches, self.epsilon, self.dtype, name=name.lower())(x)
                if name == "Mixed_6d":
                    first = x[..., :SPATIAL_CHANNELS].astype(jnp.float32)  # [B, 17, 17, 7]
                    found["spatial"] = first.reshape(len(x), -1)  # [B, 2023]
                if name == "Mixed_6e":
                    found["768"] = _average(x)
            found["2048"] = _average(x)
            found["logits_unbiased"] = Linear(self.num_classes, use_bias=False, name="fc")(found["2048"])
        bias = self.param("fc_bias", nn.initializers.zeros_init(), (self.num_classes,), jnp.float32)
        return found | {"logits": found["logits_unbiased"] + bias}

    def _made(self, layer: Layer) -> "ConvNorm":
        return ConvNorm(layer, self.epsilon, self.dtype, name=layer.name.lower())


class Mixed(nn.Module):
    """Branches that see one map, their outputs joined.

    Attributes:
      branches: their steps.
      epsilon, dtype: as those of `InceptionV3`.
    """

    branches: tuple[Branch, ...]
    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, in]` to `[B, H', W', sum of the branches' features]`."""

        def made(layer: Layer) -> ConvNorm:
            return ConvNorm(layer, self.epsilon, self.dtype, name=layer.name)

        return jnp.concatenate([_run(made, branch, x) for branch in self.branches], -1)


class ConvNorm(nn.Module):
    """A convolution, batch norm by stored statistics, and ReLU.

    Attributes:
      layer: the convolution.
      epsilon: added to the variance.
      dtype: precision of the convolution.
    """

    layer: Layer
    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x` `[B, H, W, in]` to `[B, H', W', layer.features]`."""
        width, kernel_size, stride = self.layer.features, self.layer.kernel, self.layer.stride
        kernel = self.param("kernel", nn.initializers.he_normal(), (*kernel_size, x.shape[-1], width), jnp.float32)
        zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
        scale, variance = (self.param(name, ones, (width,), jnp.float32) for name in ("scale", "variance"))
        bias, mean = (self.param(name, zeros, (width,), jnp.float32) for name in ("bias", "mean"))
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(stride, stride),
            padding=[(side // 2, side // 2) if self.layer.padded else (0, 0) for side in kernel_size],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        gain = scale * jax.lax.rsqrt(variance + self.epsilon)  # one product and one sum for each pixel
        return nn.relu(x.astype(jnp.float32) * gain + (bias - mean * gain)).astype(self.dtype)


def _run(made: Callable[[Layer], ConvNorm], steps: Branch, x: Array) -> Array:
    """The steps of a branch, one after the other."""
    for step in steps:
        if isinstance(step, Layer):
            x = made(step)(x)
        elif isinstance(step, tuple):
            x = jnp.concatenate([made(layer)(x) for layer in step], -1)
        else:
            x = step(x)
    return x


def _average(x: Array) -> Array:
    """The mean over the map `[B, C]`, float32."""
    return x.astype(jnp.float32).mean((1, 2))

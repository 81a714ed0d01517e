"""Perceptual losses: how far reconstructions are from images, as frozen networks see them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """LPIPS, differences of a classifier's scores, or both.

    VQGAN and its descendants take LPIPS over VGG16 alone (Esser et al. 2021, arXiv 2012.09841). The later tokenizers
    of the TiTok family take `(1.0 * lpips + 0.1 * convnext) / 1.1`, with ConvNeXt-S (Kim et al. 2025, arXiv
    2501.07730).

    Attributes:
      lpips: an `encoders.lpips.LPIPS`; None for none.
      convnext: a network with `logits`, such as an `encoders.convnext.ConvNeXt`; None for none.
      lpips_weight, convnext_weight: of the parts that are there.
      normalise: whether the weighted sum is divided by the sum of the weights.
      resize: side in pixels that images are brought to for `convnext`; their aspect is not kept.

    Raises:
      ValueError: for no network at all, weights that are negative or all 0, and a side below 1.
    """

    lpips: Any = None
    convnext: Any = None
    lpips_weight: float = 1.0
    convnext_weight: float = 0.1
    normalise: bool = True
    resize: int = 224

    def __post_init__(self) -> None:
        weights = self._weights()
        if not weights:
            raise ValueError("a perceptual loss needs lpips or convnext: set one of them, or leave the loss out")
        if min(weights.values()) < 0 or not sum(weights.values()):
            raise ValueError(f"perceptual weights are 0 or more and not all 0, got {weights}")
        if self.resize < 1:
            raise ValueError(f"resize is a side in pixels, 1 or more, got {self.resize}")

    def loss(self, frozen: Mapping[str, PyTree], images: Array, reconstructions: Array) -> Array:
        """The weighted distance of each example; gradients reach the reconstructions alone.

        Args:
          frozen: variables of the networks by `lpips` and `convnext`.
          images, reconstructions: `[B, H, W, 3]` in [-1, 1].

        Returns:
          `[B]`, float32.
        """
        return self.weighted(self.parts(frozen, images, reconstructions))

    def parts(self, frozen: Mapping[str, PyTree], images: Array, reconstructions: Array) -> dict[str, Array]:
        """The distances `[B]` by `lpips` and `convnext`, not weighted; arguments as those of `loss`.

        That of the scores is their mean squared difference over the classes.
        """
        frozen, images = jax.lax.stop_gradient((dict(frozen), images))
        found = {}
        if self.lpips is not None:
            found["lpips"] = self.lpips.apply(frozen["lpips"], images, reconstructions)
        if self.convnext is not None:
            ours, theirs = (self._scores(frozen["convnext"], part) for part in (images, reconstructions))
            found["convnext"] = jnp.square(ours - theirs).mean(-1)
        return found

    def weighted(self, parts: Mapping[str, Array]) -> Array:
        """One value of distances by `lpips` and `convnext`."""
        weights = self._weights()
        value = sum((weights[name] * part for name, part in parts.items()), jnp.float32(0))
        return value / sum(weights.values()) if self.normalise else value

    def resized(self, images: Array) -> Array:
        """Images as `convnext` takes them, `[B, resize, resize, C]`: triangle filter, widened where sides shrink."""
        shape = (len(images), self.resize, self.resize, images.shape[-1])
        return jax.image.resize(images.astype(jnp.float32), shape, "bilinear", antialias=True)

    def _scores(self, variables: PyTree, images: Array) -> Array:
        return self.convnext.apply(variables, self.resized(images), method="logits")

    def _weights(self) -> dict[str, float]:
        parts = {"lpips": (self.lpips, self.lpips_weight), "convnext": (self.convnext, self.convnext_weight)}
        return {name: weight for name, (network, weight) in parts.items() if network is not None}

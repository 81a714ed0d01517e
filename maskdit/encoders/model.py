"""A feature network with its weights: what `maskdit.load` gives for published encoders."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskdit.contracts import Array, ModelError, PyTree
from maskdit.encoders.lpips import LPIPS
from maskdit.tokenizers.pixels import checked_images
from maskdit.training import placement
from maskdit.training.mesh import MeshShape


@dataclasses.dataclass(frozen=True)
class EncoderModel:
    """A feature network with its weights.

    Attributes:
      encoder: the module.
      variables: its parameters under `params`, by the name `encoder`.
      config: what it was built from.
      vocabulary, ema, step: of what generators have; an encoder has no labels.
      devices: the mesh to compute on; None for all devices, each with a copy of the weights.
    """

    encoder: Any
    variables: PyTree
    config: ConfigDict | None = None
    vocabulary: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ema: str = "none"
    step: int | None = None
    devices: Mesh | None = None

    def features(self, images: np.ndarray) -> Any:
        """What the network's `features` gives of images: uint8, or float in [-1, 1], `[B, H, W, 3]`.

        Raises:
          ModelError: for images of another kind.
        """
        return self._run("features", checked_images(images))

    def distance(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The distance of pairs of images `[B]`, float32; images as those of `features`.

        Raises:
          ModelError: for images of another kind or of two shapes, and of a network that gives features only.
        """
        if not isinstance(self.encoder, LPIPS):
            raise ModelError(f"{type(self.encoder).__name__} gives features, no distance: load lpips for one")
        images, others = checked_images(images), checked_images(others)
        if images.shape != others.shape:
            raise ModelError(f"pairs have one shape, got {list(images.shape)} and {list(others.shape)}")
        return self._run("__call__", images, others)

    def _run(self, method: str, *images: np.ndarray) -> Any:
        program = functools.partial(_applied, encoder=self.encoder, method=method)
        devices = MeshShape().make() if self.devices is None else self.devices
        return placement.by_rows(program, devices, {"params": self.variables["params"]["encoder"]}, images)


@functools.partial(jax.jit, static_argnames=("encoder", "method"))
def _applied(variables: PyTree, images: tuple[Array, ...], *, encoder: Any, method: str) -> Any:
    return encoder.apply(variables, *images, method=method)

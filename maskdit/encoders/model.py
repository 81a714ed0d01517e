"""A feature network with its weights: what `maskdit.load` gives for published encoders."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskdit.contracts import Array, ModelError, PyTree
from maskdit.encoders.features import Preprocessing
from maskdit.encoders.lpips import LPIPS
from maskdit.tokenizers.pixels import check_shape, checked_images
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

    def features(self, images: np.ndarray, resize: str | None = None) -> Any:
        """What the network says of images `[B, H, W, 3]`.

        Args:
          images: uint8, of any size for a network that resizes them itself; others take float in [-1, 1] too.
          resize: the rule to resize by, of those in the network's `PREPROCESSING`; None for its first.

        Returns:
          Of a network for scores its `maskdit.encoders.features.Features`, of others what their `features` gives.

        Raises:
          ModelError: for images of another kind, and a rule that the network does not have.
        """
        if not hasattr(self.encoder, "PREPROCESSING"):
            if resize is not None:
                raise ModelError(
                    f"{type(self.encoder).__name__} takes images as they are: resize={resize} is not for it"
                )
            return self._run("features", checked_images(images))
        check_shape(np.shape(images))
        if np.asarray(images).dtype != np.uint8:
            raise ModelError(f"{type(self.encoder).__name__} takes images as uint8, got {np.asarray(images).dtype}")
        program = functools.partial(_seen, encoder=self.encoder, preprocessing=preprocessing(self.encoder, resize))
        return self._by_rows(program, images)

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
        return self._by_rows(functools.partial(_applied, encoder=self.encoder, method=method), *images)

    def _by_rows(self, program: Any, *images: np.ndarray) -> Any:
        devices = MeshShape().make() if self.devices is None else self.devices
        return placement.by_rows(program, devices, {"params": self.variables["params"]["encoder"]}, images)


def preprocessing(encoder: Any, resize: str | None = None) -> Preprocessing:
    """How a network for scores wants its images.

    Args:
      encoder: a module with `PREPROCESSING`.
      resize: the rule; None for the network's first.

    Raises:
      ModelError: for a rule that the network does not have.
    """
    known = encoder.PREPROCESSING
    if resize is not None and resize not in known:
        raise ModelError(f"{type(encoder).__name__} is used with the resize rules {', '.join(known)}; got '{resize}'")
    return known[resize or next(iter(known))]


@functools.partial(jax.jit, static_argnames=("encoder", "preprocessing"))
def _seen(variables: PyTree, images: tuple[Array, ...], *, encoder: Any, preprocessing: Preprocessing) -> Any:
    with jax.default_matmul_precision("highest"):  # as scores have it
        return encoder.apply(variables, preprocessing(images[0]))


@functools.partial(jax.jit, static_argnames=("encoder", "method"))
def _applied(variables: PyTree, images: tuple[Array, ...], *, encoder: Any, method: str) -> Any:
    return encoder.apply(variables, *images, method=method)

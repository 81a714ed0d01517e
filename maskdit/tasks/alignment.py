"""Latents held near the features of a frozen encoder (VA-VAE, Yao et al. 2025, arXiv 2501.01423)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Array, PyTree
from maskdit.layers.linear import Linear
from maskdit.tasks.adversarial import gradient_ratio
from maskdit.tokenizers.quantize.distance import normalised


@dataclasses.dataclass(frozen=True)
class FeatureAlignment:
    """Two losses between latents z, brought to the width of features f by a trained linear map, and these features.

    - marginal cosine similarity: the mean over positions of `relu(1 - cosine_margin - cos(z_i, f_i))`;
    - marginal distance matrix similarity: the mean over pairs of `relu(|cos(z_i, z_j) - cos(f_i, f_j)| -
      distance_margin)`.

    Both are taken after the linear map. Margins and weight are those that reimplementations give for its last stage of
    training with DINOv2; unverified against the authors' own.

    Attributes:
      encoder: a linen module whose `method` takes images `[B, H, W, 3]` in [-1, 1] to features `[B, h, w, f]`, or
        `[B, N, f]` of a square grid, or to several of these.
      method: the name of that method.
      level: which it is of several, such as -1 for the last.
      size: side to which images are resized before; 0 for as they are.
      cosine_margin, distance_margin: what is near enough.
      cosine_weight, distance_weight: factors of the two losses.
      weight: factor of both.
      adaptive: whether it is multiplied by the ratio of gradient norms at the encoder's last layer. Of a posterior the
        gradients are taken through its mean, not through the sample that the losses see.
      adaptive_max: largest such ratio.

    Raises:
      ValueError: for numbers out of their range.
    """

    encoder: Any
    method: str = "features"
    level: int = -1
    size: int = 0
    cosine_margin: float = 0.5
    distance_margin: float = 0.25
    cosine_weight: float = 1.0
    distance_weight: float = 1.0
    weight: float = 0.1
    adaptive: bool = True
    adaptive_max: float = 1e8

    def __post_init__(self) -> None:
        for name in ("size", "cosine_weight", "distance_weight", "weight", "adaptive_max"):
            if getattr(self, name) < 0:
                raise ValueError(f"FeatureAlignment has {name}={getattr(self, name)}: give 0 or more")
        for name in ("cosine_margin", "distance_margin"):
            if not 0 <= getattr(self, name) <= 2:
                raise ValueError(f"FeatureAlignment has {name}={getattr(self, name)}: cosines differ by 0 to 2")

    def init(self, key: Array, images: Array, z: Any) -> PyTree:
        """Parameters of the linear map: `projection`.

        Args:
          key: for their initial values.
          images: an example, `[1, H, W, 3]`.
          z: latents that belong to it, or their shape: `[1, h, w, c]`, or `[1, N, c]` of a square grid.

        Raises:
          ValueError: for features and latents of no grid.
        """

        def made() -> Array:
            seen = self._resized(images)
            return self._map(self.encoder.init_with_output(jax.random.key(0), seen, method=self.method)[0])

        features = jax.eval_shape(made)
        rows, columns = _sides(z.shape)
        example = jnp.zeros((1, rows, columns, z.shape[-1]))
        return {"projection": Linear(features.shape[-1], use_bias=False).init(key, example)["params"]}

    def features(self, variables: PyTree, images: Array) -> Array:
        """Features `[B, h, w, f]`, float32, of images `[B, H, W, 3]` in [-1, 1]; without gradient.

        Args:
          variables: the encoder's.
          images: what is encoded.
        """
        seen = self.encoder.apply(variables, self._resized(images), method=self.method)
        return jax.lax.stop_gradient(self._map(seen))

    def loss(self, params: PyTree, features: Array, z: Array) -> tuple[Array, dict[str, Array]]:
        """The loss of each example, and its parts.

        Args:
          params: of `init`.
          features: of `features`; resized, bilinearly, where their grid is another than that of the latents.
          z: latents, as in `init`, with any batch.

        Returns:
          The sum of both parts `[B]`, without `weight`; `alignment_cosine` and `alignment_distance` `[B]`.
        """
        rows, columns = _sides(z.shape)
        projected = Linear(features.shape[-1], use_bias=False).apply(
            {"params": params["projection"]}, z.astype(jnp.float32).reshape(z.shape[0], rows * columns, -1)
        )  # [B, N, f]
        if features.shape[1:3] != (rows, columns):
            features = _bilinear(features, rows, columns)
        near = normalised(projected), normalised(features.reshape(*projected.shape))  # [B, N, f] each
        cosine = jax.nn.relu(1 - self.cosine_margin - jnp.sum(near[0] * near[1], axis=-1)).mean(1)
        ours, theirs = (jnp.einsum("bif,bjf->bij", x, x) for x in near)
        distance = jax.nn.relu(jnp.abs(ours - theirs) - self.distance_margin).mean((1, 2))
        value = self.cosine_weight * cosine + self.distance_weight * distance
        return value, {"alignment_cosine": cosine, "alignment_distance": distance}

    def adaptive_weight(self, reconstruction_norm: Array, alignment_norm: Array) -> Array:
        """`gradient_ratio` up to `adaptive_max`, of the norms of two losses' gradients at the encoder's last layer;
        `weight` is not in it."""
        return gradient_ratio(reconstruction_norm, alignment_norm, self.adaptive_max)

    def _resized(self, images: Array) -> Array:
        """Images of the side that the encoder is given."""
        return _bilinear(images, self.size, self.size) if self.size else images

    def _map(self, features: Any) -> Array:
        """Features as `[B, h, w, f]`, float32.

        Raises:
          ValueError: for features of no grid.
        """
        chosen = features[self.level] if isinstance(features, tuple | list) else features
        rows, columns = _sides(chosen.shape)
        return chosen.astype(jnp.float32).reshape(chosen.shape[0], rows, columns, -1)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of latents or features of a shape."""
    if len(shape) == 4:
        return shape[1], shape[2]
    side = math.isqrt(shape[1])
    if len(shape) != 3 or side * side != shape[1]:
        raise ValueError(
            f"alignment is of places in the image: latents and features must be [B, h, w, c], or [B, N, c] of a square "
            f"grid, got {list(shape)}"
        )
    return side, side


def _bilinear(x: Array, rows: int, columns: int) -> Array:
    """Maps `[B, h, w, c]` at another size, each place between the nearest four, whether it grows or shrinks."""
    return jax.image.resize(x, (x.shape[0], rows, columns, x.shape[-1]), "bilinear", antialias=False)

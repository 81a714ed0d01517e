"""A classifier of images: trained on labels, used to judge what generators make."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskdit.contracts import Array, Draw, Latents, Loss, ModelError, Plan, PyTree
from maskdit.tasks.task import Context, check_labels
from maskdit.tokenizers.pixels import to_float
from maskdit.training import placement
from maskdit.training.mesh import MeshShape, replicated, unboxed
from maskdit.training.optim import Group


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Trains `network` on the sum of the labels' cross entropies.

    With a `tokenizer` a share of the training images is seen as a generator on that tokenizer would show them: encoded,
    disturbed in the latent space, decoded. A judge of generated images must not be thrown by what they all have.

    Attributes:
      network: what is trained; its `classes` name the labels.
      groups: see `maskdit.training.optim.Group`.
      smoothing: share of the target spread over all classes (Szegedy et al. 2016, arXiv 1512.00567).
      shift: images are moved by up to so many pixels along each axis, with their edge pixels repeated.
      tokenizer: degrades images; None for none. Not kept with the model.
      degrade: probability that a training image is degraded.
      noise: largest standard deviation of the disturbance of latents; each image draws its own below that.
      horizon: steps that schedules span; 0 until a run sets it.

    Raises:
      ValueError: for a number out of its range, and for `degrade` without a tokenizer.
    """

    network: Any
    groups: Mapping[str, Group] = dataclasses.field(default_factory=lambda: {"classifier": Group()})
    smoothing: float = 0.0
    shift: int = 0
    tokenizer: Any = None
    degrade: float = 0.0
    noise: float = 0.0
    horizon: int = 0

    def __post_init__(self) -> None:
        for name in ("smoothing", "degrade"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} lies in 0 to 1, got {getattr(self, name)}")
        for name in ("shift", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.degrade and self.tokenizer is None:
            raise ValueError(f"degrade={self.degrade} needs a tokenizer: set one, or degrade=0")

    def init(self, draw: Draw, batch: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
        """The network's parameters; the task has no state. Draws: `network`."""
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        return {"network": self.network.init(draw.init_key("network"), images)["params"]}, {}

    def freeze(
        self, draw: Draw, images: Callable[[], Iterable[Any]], given: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, PyTree]:
        """The tokenizer's variables, given or fitted to the training images; nothing without a tokenizer. Draws:
        `tokenizer`.
        """
        if self.tokenizer is None:
            return {}
        if "tokenizer" not in given:
            return {"tokenizer": self.tokenizer.fit(images())}
        key, image = draw.init_key("tokenizer"), to_float(jnp.asarray(next(iter(images()))[:1]))
        return {"tokenizer": given["tokenizer"].over(lambda: unboxed(self.tokenizer.init(key, image)))}

    def check(self, batch: Mapping[str, Any], vocabulary: Mapping[str, tuple[str, ...]]) -> None:
        """Holds the data's labels against what the network expects.

        Raises:
          ValueError: where a label is missing or has another number of classes.
        """
        check_labels(self.network.classes, vocabulary)

    def loss(self, group: str, params: PyTree, ctx: Context) -> tuple[Loss, PyTree]:
        """Cross entropies of the batch's images, augmented.

        Draws: `shift` (integers `[B, 2]`), `degrade` and `level` (uniform `[B]`), `noise` (normal, shaped as latents).
        """
        images = to_float(ctx.batch["image"])
        if self.shift:
            images = _shifted(images, ctx.draw.integers("shift", (len(images), 2), 0, 2 * self.shift + 1), self.shift)
        if self.degrade:
            chosen = ctx.draw.uniform("degrade", (len(images),)) < self.degrade
            images = jnp.where(chosen[:, None, None, None], self._degraded(images, ctx.frozen, ctx.draw), images)
        return self._loss(params, images, ctx.batch, self.smoothing), ctx.state

    def held_out(self, params: PyTree, ctx: Context) -> Loss:
        """Cross entropies without smoothing; the metrics also hold accuracies of the images through the tokenizer."""
        images = to_float(ctx.batch["image"])
        loss = self._loss(params, images, ctx.batch, 0.0)
        if self.tokenizer is not None:
            degraded = self._loss(params, self._degraded(images, ctx.frozen, None), ctx.batch, 0.0).metrics
            loss.metrics.update({f"degraded/{name}": right for name, right in degraded.items()})
        return dataclasses.replace(loss, weight=ctx.batch["weight"])

    def plan(self, step: int) -> Plan:
        """All steps are alike."""
        return Plan()

    def model(self, variables: PyTree, vocabulary: Mapping[str, tuple[str, ...]]) -> "ClassifierModel":
        """The classifier, without the tokenizer."""
        known = {name: tuple(vocabulary[name]) for name in self.network.classes}
        return ClassifierModel(task=self, variables={"params": variables["params"]}, vocabulary=known)

    def _loss(self, params: PyTree, images: Array, batch: Mapping[str, Array], smoothing: float) -> Loss:
        said = self.network.apply({"params": params["network"]}, images)
        value, metrics = jnp.zeros(len(images)), {}
        for name, logits in said.logits.items():
            logits = logits.astype(jnp.float32)
            target = optax.smooth_labels(jax.nn.one_hot(batch[name], logits.shape[-1]), smoothing)
            value = value + optax.softmax_cross_entropy(logits, target)
            metrics[f"accuracy/{name}"] = (logits.argmax(-1) == batch[name]).astype(jnp.float32)
        return Loss(value=value, weight=jnp.ones(len(images)), metrics=metrics, prediction=said)

    def _degraded(self, images: Array, frozen: PyTree, draw: Draw | None) -> Array:
        z = self.tokenizer.apply(frozen["tokenizer"], images, method="encode").values
        if draw is not None and self.noise:
            level = self.noise * draw.uniform("level", (len(z),))
            z = z + level.reshape(-1, *[1] * (z.ndim - 1)) * draw.normal("noise", z.shape)
        decoded = self.tokenizer.apply(frozen["tokenizer"], Latents(values=z), method="decode")
        return jnp.clip(decoded, -1, 1)


@dataclasses.dataclass(frozen=True)
class ClassifierModel:
    """A trained classifier.

    Attributes:
      task: the `Classifier` that it was trained by.
      variables: `params` by network name.
      vocabulary: label name -> class names.
      config: the run's config.
      ema, step, devices: see `maskdit.networks.model.GeneratorModel`.
    """

    task: Any
    variables: PyTree
    vocabulary: dict[str, tuple[str, ...]]
    config: ConfigDict | None = None
    ema: str = "none"
    step: int | None = None
    devices: Mesh | None = None

    def classify(self, images: np.ndarray, batch: int = 64) -> dict[str, np.ndarray]:
        """Class numbers int32 `[N]`, by label name, of images uint8 `[N, H, W, 3]`.

        Raises:
          ModelError: for images of another type or shape.
        """
        return {name: p.argmax(-1).astype(np.int32) for name, p in self.probabilities(images, batch).items()}

    def probabilities(self, images: np.ndarray, batch: int = 64) -> dict[str, np.ndarray]:
        """Probabilities float32 `[N, classes]`, by label name, of images uint8 `[N, H, W, 3]`.

        Raises:
          ModelError: for images of another type or shape.
        """
        return self._run(images, batch)[0]

    def features(self, images: np.ndarray, batch: int = 64) -> np.ndarray:
        """Pooled features float32 `[N, features]` of images uint8 `[N, H, W, 3]`.

        Raises:
          ModelError: for images of another type or shape.
        """
        return self._run(images, batch)[1]

    def _run(self, images: np.ndarray, batch: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        images = np.asarray(images)
        size = self.config.data.size if self.config else None
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or not len(images)
            or images.shape[3] != 3
            or (size and images.shape[1:3] != (size, size))
        ):
            wanted = f"[N, {size or 'H'}, {size or 'W'}, 3]"
            raise ModelError(f"images are uint8 {wanted}, N > 0; got {images.dtype} {list(images.shape)}")
        devices = MeshShape().make() if self.devices is None else self.devices
        program = functools.partial(_classified, network=self.task.network)
        params = placement.spread(self.variables["params"]["network"], replicated(devices))
        made = [placement.by_rows(program, devices, params, part) for part in placement.parts(images, batch, devices)]
        return jax.tree.map(lambda *a: np.concatenate(a)[: len(images)], *made)


@functools.partial(jax.jit, static_argnames=("network",))
def _classified(params: PyTree, images: Array, *, network: Any) -> tuple[dict[str, Array], Array]:
    said = network.apply({"params": params}, to_float(images))
    return {name: jax.nn.softmax(logits.astype(jnp.float32)) for name, logits in said.logits.items()}, said.features


def _shifted(images: Array, offset: Array, most: int) -> Array:
    """Images `[B, H, W, 3]` moved by `offset - most` `[B, 2]` pixels, edges repeated."""
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    return jax.vmap(lambda image, o: jax.lax.dynamic_slice(image, (o[0], o[1], 0), images.shape[1:]))(padded, offset)

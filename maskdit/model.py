"""Trained models: `load` one from a work directory; `sample`, `encode` and `decode` with it."""

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.contracts import Array, Cond, Latents, PyTree, bind
from maskdit.draw import Draw
from maskdit.samplers.guidance import ClassifierFree, WeakNetwork
from maskdit.samplers.sampling import network_calls
from maskdit.samplers.sampling import sample as run_sampler
from maskdit.tokenizers.pixels import to_float, to_uint8
from maskdit.training import checkpoint
from maskdit.training.precision import on_this_device

Labels = Mapping[str, str | int | Sequence[str | int]]


class ModelError(ValueError):
    """A model that cannot do what it was asked for; the message says what it can."""


def load(path: str, *, ema: str = "default", step: int | None = None, trust: Iterable[str] = ()) -> Any:
    """Loads a trained model from its work directory.

    Args:
      path: a work directory, local or `gs://`, or a file written by `save`.
      ema: which average of the weights: `default` (the run's first), the name of another, or `none` for the raw
        weights. A model file holds one set of weights.
      step: which kept checkpoint; None for the last.
      trust: packages besides `maskdit` whose classes the checkpoint's config may build.

    Returns:
      The model that the run's task makes, such as a `GeneratorModel`.

    Raises:
      ModelError, CheckpointError: where there is no such checkpoint, average or step; the message names those there
        are.
    """
    if str(path).endswith(".npz"):
        if ema != "default" or step is not None:
            raise ModelError(f"{path} holds one set of weights: ema and step choose among those of a work directory")
        stored = checkpoint.read_file(path)
    else:
        stored = checkpoint.read(path, ema=ema, step=step)
    config = configs.from_json(stored.meta["config"])
    task = configs.build(on_this_device(config).task, trust, horizon=config.horizon)
    model = task.model(stored.variables, {k: tuple(v) for k, v in stored.meta["vocabulary"].items()})
    parts = {key: configs.build(config[key], trust) for key in ("sampler", "guidance") if config.get(key) is not None}
    return dataclasses.replace(model, config=config, **parts)


def save(model: Any, path: str, dtype: str = "float32") -> None:
    """Writes a loaded model into one `.npz` file, which `load` reads.

    Args:
      model: what `load` returned.
      path: ends in `.npz`.
      dtype: of the file's floating-point arrays; `float16` halves it.

    Raises:
      ModelError: for a path of another kind.
    """
    if not str(path).endswith(".npz"):
        raise ModelError(f"a model file ends in .npz, got {path}")
    meta = {"config": configs.to_json(model.config), "vocabulary": model.vocabulary, "ema": []}
    checkpoint.write_file(path, checkpoint.Stored(model.variables, meta), dtype)


@dataclasses.dataclass(frozen=True)
class GeneratorModel:
    """A generator with its tokenizer.

    Attributes:
      task: the `maskdit.tasks.generator.Generator` that it was trained by.
      variables: `params` by network name, and `frozen` ones.
      vocabulary: label name -> class names.
      sampler, guidance: what `sample` uses where nothing else is asked for.
      config: the run's config.
    """

    task: Any
    variables: PyTree
    vocabulary: dict[str, tuple[str, ...]]
    sampler: Any = None
    guidance: Any = None
    config: ConfigDict | None = None

    def sample(
        self,
        labels: Labels | None = None,
        *,
        count: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        first: int = 0,
        batch: int = 64,
        sampler: Any = None,
        weak: "GeneratorModel | None" = None,
    ) -> np.ndarray:
        """Draws images.

        Image i of a seed has the same draws whatever `count`, `first` and `batch` are.

        Args:
          labels: label name -> class name or number, for all images, or a list with one for each; None draws labels at
            random.
          count: number of images; by default as many as the longest list of labels, else 16.
          steps: steps of the sampler; None for the model's own.
          guidance: weight of the guidance, 1 for none; None for the model's own.
          seed: of all draws.
          first: number of the first image: with `count` 8, images 8 to 15 of a seed have `first` 8.
          batch: images made at once.
          sampler: another sampler than the model's own.
          weak: a weaker model to guide with (autoguidance), in place of dropped labels.

        Returns:
          Images uint8 `[count, H, W, 3]`.

        Raises:
          ModelError: for unknown or missing labels, a number of steps below 1, or guidance of a model that was trained
            without dropping labels.
        """
        sampler, chosen = self._settings(sampler, steps, guidance, weak)
        count = _count(labels, count)
        _check_numbers(count, seed, first, batch)
        numbers = np.arange(first, first + count)
        ids = self._label_ids(labels, count, seed, numbers)
        batch = min(batch, count)
        images = []
        for start in range(0, count, batch):
            # the last batch is filled up, so that one program serves all
            rows = np.minimum(np.arange(start, start + batch), count - 1)
            made = _sample(
                jax.device_put(self.variables),
                jax.device_put(np.uint32(seed)),
                jax.device_put(numbers[rows].astype(np.uint32)),
                jax.device_put({name: values[rows] for name, values in ids.items()}),
                jax.device_put(weak.variables["params"]["network"]) if weak else None,
                network=self.task.network,
                process=self.task.process,
                tokenizer=self.task.tokenizer,
                sampler=sampler,
                guidance=chosen,
                weak_network=weak.task.network if weak else None,
            )
            images.append(jax.device_get(made)[: count - start])
        return np.concatenate(images)

    def labels(
        self, labels: Labels | None = None, *, count: int | None = None, seed: int = 0, first: int = 0
    ) -> dict[str, list[str]]:
        """Class names of the images that `sample` draws with the same arguments, label name -> one for each image."""
        count = _count(labels, count)
        ids = self._label_ids(labels, count, seed, np.arange(first, first + count))
        return {name: [self.vocabulary[name][i] for i in values] for name, values in ids.items()}

    def check(self) -> None:
        """Refuses a sampler or guidance that does not fit the model.

        Raises:
          ModelError, ValueError: with what does not fit.
        """
        sampler, guidance = self._settings(None, None, None, None)
        network_calls(sampler, self.task.process, guidance)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Latents `[B, h, w, c]`, as the network sees them, of images: uint8, or float in [-1, 1], `[B, H, W, 3]`.

        Raises:
          ModelError: for images of another kind or shape.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ModelError(f"images are [B, H, W, 3], got {list(images.shape)}")
        step = self.task.tokenizer.latent.downsample
        if images.shape[1] % step or images.shape[2] % step:
            raise ModelError(f"the tokenizer takes sides that are multiples of {step}, got {list(images.shape[1:3])}")
        if images.dtype == np.uint8:
            images = np.asarray(to_float(jnp.asarray(images)))
        elif not np.isfinite(images).all() or np.abs(images).max() > 1.001:
            raise ModelError("float images are finite and lie in [-1, 1]; give uint8 images otherwise")
        frozen = self.variables["frozen"]["tokenizer"]
        return np.asarray(_encode(frozen, images.astype(np.float32), tokenizer=self.task.tokenizer))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Images uint8 `[B, H, W, 3]` of latents `[B, h, w, c]`.

        Raises:
          ModelError: for latents of another shape.
        """
        latents = np.asarray(latents, np.float32)
        if latents.ndim != 4 or latents.shape[-1] != self.task.tokenizer.latent.channels:
            channels = self.task.tokenizer.latent.channels
            raise ModelError(f"latents are [B, h, w, {channels}], got {list(latents.shape)}")
        return np.asarray(_decode(self.variables["frozen"]["tokenizer"], latents, tokenizer=self.task.tokenizer))

    def predict(self, x: Array, t: Array, labels: Mapping[str, Array]) -> Any:
        """The bare network's `Prediction` for inputs `[B, ...]`, times `[B]` and label ids `[B]`."""
        network = bind(self.task.network, self.variables["params"]["network"])
        return network(x, t, Cond(labels={name: jnp.asarray(ids) for name, ids in labels.items()}))

    def _settings(self, sampler: Any, steps: int | None, weight: float | None, weak: Any) -> tuple[Any, Any]:
        sampler = sampler or self.sampler
        if sampler is None:
            raise ModelError("this model has no sampler of its own: pass sampler=")
        if steps is not None:
            if steps < 1:
                raise ModelError(f"a sampler takes 1 or more steps, got {steps}")
            sampler = dataclasses.replace(sampler, steps=steps)
        guidance = self.guidance
        if weak is not None:
            guidance = WeakNetwork(weight=2.0 if weight is None else weight)
        elif weight is not None:
            guidance = dataclasses.replace(guidance or ClassifierFree(), weight=float(weight))
        guided = weak is None and guidance is not None and guidance.weight != 1
        if guided and not self.task.network.classes:
            raise ModelError("this model has no labels to guide by: use guidance 1, or give a weak model")
        if guided and not self.task.label_drop:
            raise ModelError(
                "this model was trained without dropping labels (label_drop=0), so it cannot guide itself: "
                "use guidance 1, or give a weak model"
            )
        return sampler, guidance

    def _label_ids(self, labels: Labels | None, count: int, seed: int, numbers: np.ndarray) -> dict[str, np.ndarray]:
        names = dict(self.task.network.classes)
        if labels is None:
            draw = Draw(seed).named("labels").at(numbers)
            return {name: np.asarray(draw.integers(name, (count,), 0, size)) for name, size in names.items()}
        for name in labels:
            if name not in names:
                raise ModelError(f"this model has no label '{name}'; {_nearest(name, list(names))}")
        missing = [name for name in names if name not in labels]
        if missing:
            raise ModelError(
                f"the model is conditioned on {' and '.join(sorted(names))}; {' and '.join(missing)} is missing: "
                f"add {', '.join(f'{name}={self.vocabulary[name][0]}' for name in missing)} (or another class)"
            )
        return {name: np.resize(self._class_ids(name, labels[name]), count) for name in names}

    def _class_ids(self, name: str, classes: Any) -> np.ndarray:
        given = [classes] if isinstance(classes, str | int | np.integer) else list(classes)
        if not given:
            raise ModelError(f"label '{name}' has an empty list of classes: name at least one")
        known = self.vocabulary[name]
        ids = []
        for item in given:
            if isinstance(item, str) and item not in known and item.isdigit():
                item = int(item)
            if isinstance(item, str) and item not in known:
                raise ModelError(f"label '{name}' has no class '{item}'; {_nearest(item, list(known))}")
            number = known.index(item) if isinstance(item, str) else int(item)
            if not 0 <= number < len(known):
                raise ModelError(f"label '{name}' has classes 0 to {len(known) - 1}, got {number}")
            ids.append(number)
        return np.asarray(ids, np.int32)


@functools.partial(jax.jit, static_argnames=("network", "process", "tokenizer", "sampler", "guidance", "weak_network"))
def _sample(
    variables: PyTree,
    seed: Array,
    numbers: Array,
    labels: dict[str, Array],
    weak_params: PyTree,
    *,
    network: Any,
    process: Any,
    tokenizer: Any,
    sampler: Any,
    guidance: Any,
    weak_network: Any,
) -> Array:
    predict = bind(network, variables["params"]["network"])
    weak = None if weak_network is None else bind(weak_network, weak_params)
    draw = Draw(jax.random.key(seed)).named("sample").at(numbers)
    shape = (numbers.shape[0], *network.layout.shape)
    z = run_sampler(process, sampler, predict, draw, shape, Cond(labels=labels), guidance=guidance, weak=weak)
    return to_uint8(tokenizer.apply(variables["frozen"]["tokenizer"], Latents(values=z), method="decode"))


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def _encode(frozen: PyTree, images: Array, *, tokenizer: Any) -> Array:
    return tokenizer.apply(frozen, images, method="encode").values


@functools.partial(jax.jit, static_argnames=("tokenizer",))
def _decode(frozen: PyTree, latents: Array, *, tokenizer: Any) -> Array:
    return to_uint8(tokenizer.apply(frozen, Latents(values=latents), method="decode"))


def _count(labels: Labels | None, count: int | None) -> int:
    if count is None:
        lengths = [len(v) for v in (labels or {}).values() if not isinstance(v, str | int | np.integer)]
        count = max(lengths, default=16) or 1
    if count < 1:
        raise ModelError(f"count must be 1 or more, got {count}")
    return count


def _check_numbers(count: int, seed: int, first: int, batch: int) -> None:
    for name, value, least in (("seed", seed, 0), ("first", first, 0), ("batch", batch, 1)):
        if not least <= value < 2**32 - count:
            raise ModelError(f"{name} is {least} or more and below 2**32 - count, got {value}")


def _nearest(word: str, options: list[str]) -> str:
    close = difflib.get_close_matches(word, options, n=1)
    listed = f"there are: {', '.join(options)}" if options else "it has none"
    return f"did you mean '{close[0]}'? {listed}" if close else listed

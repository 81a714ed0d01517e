"""Trained models: `load` one from a work directory; `sample`, `encode` and `decode` with it.

A model computes on all devices, each with rows of its own. Under several processes all of them make the same calls and
get the same results.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit import references
from maskdit.config import nearest
from maskdit.contracts import Array, Cond, Latents, ModelError, PyTree, bind
from maskdit.draw import Draw
from maskdit.encoders.model import EncoderModel
from maskdit.samplers.guidance import ClassifierFree, WeakNetwork
from maskdit.samplers.sampling import network_calls
from maskdit.samplers.sampling import sample as run_sampler
from maskdit.tokenizers.model import TokenizerModel, spec_of
from maskdit.tokenizers.pixels import to_uint8
from maskdit.training import checkpoint, distributed, placement
from maskdit.training.mesh import MeshShape, replicated
from maskdit.training.precision import on_this_device
from maskdit.training.xla import own_options

Labels = Mapping[str, str | int | Sequence[str | int]]


def load(path: str, *, ema: str = "default", step: int | None = None, trust: Iterable[str] = ()) -> Any:
    """Loads a trained model from its work directory, or published weights by their name.

    Args:
      path: a work directory, local or `gs://`, a file written by `save`, or a name that `maskdit import --list` prints:
        such weights are fetched and brought into `~/.cache/maskdit` (or `$MASKDIT_CACHE`) at first use.
      ema: which average of the weights: `default` (the run's first), the name of another, or `none` for the raw
        weights. A model file holds one set of weights.
      step: which kept checkpoint; None for the last.
      trust: packages besides `maskdit` whose classes the checkpoint's config may build.

    Returns:
      The model that the run's task makes, such as a `GeneratorModel`, or a `TokenizerModel`, with a copy on every
      device.

    Raises:
      ModelError, CheckpointError, WeightsError: where there is no such checkpoint, average or step; the message names
        those there are.
    """
    everywhere = replicated(MeshShape().make())
    place = functools.partial(jax.tree.map, lambda _: everywhere)
    path = references.find(str(path))
    if path.endswith(".npz") and (ema != "default" or step is not None):
        raise ModelError(f"{path} holds one set of weights: ema and step choose among those of a work directory")
    stored = references.read(path, ema, step, place=place)
    config = configs.from_json(stored.meta["config"])
    if config.get("encoder") is not None:
        return EncoderModel(configs.build(on_this_device(config).encoder, trust), stored.variables, config)
    if config.get("task") is None:
        tokenizer = configs.build(on_this_device(config).tokenizer, trust)
        step = stored.meta.get("step") or None  # imported weights are of no step
        return TokenizerModel(tokenizer, stored.variables, config, ema=stored.ema, step=step)
    task = configs.build(on_this_device(config).task, trust, horizon=config.horizon)
    model = task.model(stored.variables, {k: tuple(v) for k, v in stored.meta["vocabulary"].items()})
    if isinstance(model, TokenizerModel):
        config = ConfigDict({"tokenizer": spec_of(model.tokenizer)})
        return dataclasses.replace(model, config=config, ema=stored.ema, step=stored.meta.get("step"))
    parts = {key: configs.build(config[key], trust) for key in ("sampler", "guidance") if config.get(key) is not None}
    return dataclasses.replace(model, config=config, ema=stored.ema, step=stored.meta.get("step"), **parts)


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
    averages = [] if model.ema == "none" else [model.ema]
    meta = {"config": configs.to_json(model.config), "vocabulary": model.vocabulary, "ema": averages}
    if model.step is not None:
        meta["step"] = model.step
    if distributed.is_first():
        checkpoint.write_file(path, checkpoint.Stored(model.variables, meta), dtype)
    distributed.barrier()


@dataclasses.dataclass(frozen=True)
class GeneratorModel:
    """A generator with its tokenizer.

    Attributes:
      task: the `maskdit.tasks.generator.Generator` that it was trained by.
      variables: `params` by network name, and `frozen` ones.
      vocabulary: label name -> class names.
      sampler, guidance: what `sample` uses where nothing else is asked for.
      config: the run's config.
      ema: the average that the weights are; `none` for raw ones.
      step: updates done; None where it is not known.
      devices: the mesh to compute on; None for all devices, each with a copy of the weights.
    """

    task: Any
    variables: PyTree
    vocabulary: dict[str, tuple[str, ...]]
    sampler: Any = None
    guidance: Any = None
    config: ConfigDict | None = None
    ema: str = "none"
    step: int | None = None
    devices: Mesh | None = None

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
          batch: images made at once; as many more as it takes to occupy all devices alike.
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
        program = sampling_program(self.task, sampler, chosen, weak.task if weak else None)
        devices = self._devices
        weak_params = weak.variables["params"]["network"] if weak else None
        inputs = placement.spread((self.variables, weak_params, np.uint32(seed)), replicated(devices))

        def made(inputs: PyTree, rows: tuple[Array, dict[str, Array]]) -> Array:
            variables, weak_params, seed = inputs
            return program(variables, seed, *rows, weak_params)

        rows = placement.parts((numbers.astype(np.uint32), ids), batch, devices)
        return np.concatenate([placement.by_rows(made, devices, inputs, part) for part in rows])[:count]

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
        """Latents `[B, h, w, c]`, as the network sees them; see `TokenizerModel.encode`."""
        return self.coder.encode(images)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Images uint8 `[B, H, W, 3]`; see `TokenizerModel.decode`."""
        return self.coder.decode(latents)

    def predict(self, x: Array, t: Array, labels: Mapping[str, Array]) -> Any:
        """The bare network's `Prediction` for inputs `[B, ...]`, times `[B]` and label ids `[B]`."""
        everything = (self.variables["params"]["network"], x, t, Cond(labels=dict(labels)))
        params, x, t, cond = placement.spread(everything, replicated(self._devices))
        return bind(self.task.network, params)(x, t, cond)

    @property
    def coder(self) -> TokenizerModel:
        """The tokenizer with its weights."""
        variables = {"params": {}, "frozen": {"tokenizer": self.variables["frozen"]["tokenizer"]}}
        return TokenizerModel(self.task.tokenizer, variables, devices=self._devices)

    @property
    def _devices(self) -> Mesh:
        return MeshShape().make() if self.devices is None else self.devices

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
                raise ModelError(f"this model has no label '{name}'; {nearest(name, list(names))}")
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
                raise ModelError(f"label '{name}' has no class '{item}'; {nearest(item, list(known))}")
            number = known.index(item) if isinstance(item, str) else int(item)
            if not 0 <= number < len(known):
                raise ModelError(f"label '{name}' has classes 0 to {len(known) - 1}, got {number}")
            ids.append(number)
        return np.asarray(ids, np.int32)


def sampling_program(task: Any, sampler: Any, guidance: Any = None, weak: Any = None) -> Any:
    """The jitted program of a sampling run with decoding.

    Args:
      task: a `maskdit.tasks.generator.Generator`.
      sampler, guidance: settings.
      weak: the task of the network that the guidance needs, if any.

    Returns:
      `program(variables, seed, numbers, labels, weak_params=None)`: variables as a `GeneratorModel` has them, the seed
      uint32, numbers of the images uint32 `[B]`, label ids int32 `[B]` by name; it gives images uint8 `[B, H, W, 3]`.
    """
    weak_network = None if weak is None else weak.network
    return _sampling_program(task.network, task.process, task.tokenizer, sampler, guidance, weak_network)


@functools.cache
def _sampling_program(
    network: Any, process: Any, tokenizer: Any, sampler: Any, guidance: Any, weak_network: Any
) -> Any:
    @functools.partial(jax.jit, compiler_options=own_options())
    def program(
        variables: PyTree, seed: Array, numbers: Array, labels: dict[str, Array], weak_params: PyTree = None
    ) -> Array:
        predict = bind(network, variables["params"]["network"])
        weak = None if weak_network is None else bind(weak_network, weak_params)
        draw = Draw(jax.random.key(seed)).named("sample").at(numbers)
        shape = (numbers.shape[0], *network.layout.shape)
        z = run_sampler(process, sampler, predict, draw, shape, Cond(labels=labels), guidance=guidance, weak=weak)
        return to_uint8(tokenizer.apply(variables["frozen"]["tokenizer"], Latents(values=z), method="decode"))

    return program


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

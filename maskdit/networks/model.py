"""A generator with its weights: what `maskdit.load` gives for one.

It computes on all devices, each with rows of its own. Under several processes all of them make the same calls and get
the same results.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskdit.config import nearest
from maskdit.contracts import Array, Cond, ModelError, PyTree, bind
from maskdit.data.conditions import check_conditions, read_prompts, takes_text
from maskdit.data.embeddings import POOLED, TEXT
from maskdit.draw import Draw
from maskdit.samplers import editing
from maskdit.samplers.guidance import ClassifierFree, WeakNetwork
from maskdit.samplers.program import Rows, sampling_program
from maskdit.samplers.sampling import Known, guided_runs
from maskdit.samplers.temperature import started
from maskdit.tokenizers.grid import codes_per_position
from maskdit.tokenizers.model import TokenizerModel
from maskdit.tokenizers.pixels import finite
from maskdit.training import placement
from maskdit.training.mesh import MeshShape, replicated

Labels = Mapping[str, str | int | Sequence[str | int]]


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
        temperature: float | None = None,
        seed: int = 0,
        first: int = 0,
        batch: int = 64,
        sampler: Any = None,
        weak: "GeneratorModel | None" = None,
        text: str | Cond | None = None,
        image: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        trajectory: bool = False,
    ) -> np.ndarray:
        """Draws images, or edits one.

        Image i of a seed has the same draws whatever `count`, `first` and `batch` are.

        Args:
          labels: label name -> class name or number, for all images, or a list with one for each; None draws labels at
            random.
          count: number of images; by default as many as the longest of what is given: lists of labels, texts, images to
            edit; without any 16.
          steps: steps of the sampler; None for the model's own.
          guidance: weight of the guidance, 1 for none; None for the model's own. Where it grows over the run, what it
            grows to.
          temperature: of a token sampler, what its noise starts from; None for the sampler's own.
          seed: of all draws.
          first: number of the first image: with `count` 8, images 8 to 15 of a seed have `first` 8.
          batch: images made at once; as many more as it takes to occupy all devices alike.
          sampler: another sampler than the model's own.
          weak: a weaker model to guide with (autoguidance), in place of dropped labels.
          text: a file of text embeddings, see `maskdit.data.embeddings.Embeddings`, or a condition that holds some: its
            rows are given to the images in turn. Needed by a model that takes text.
          image: to edit, uint8 `[H, W, 3]`, or `[count, H, W, 3]`.
          mask: of the image, bool `[H, W]`: true where it is made anew. Tokens that hold such pixels are made anew as a
            whole; the other pixels are the image's own.
          trajectory: whether to return what the model took for the clean image after each step in place of the last
            images alone; those of the last step are the images.

        Returns:
          Images uint8 `[count, H, W, 3]`; a trajectory `[count, steps, H, W, 3]`.

        Raises:
          ModelError: for unknown or missing labels, steps that the sampler cannot take, guidance of a model that was
            trained without dropping labels, and an image or mask that do not go with the model.
          NotFiniteError: for images that came out as no finite numbers.
        """
        sampler, chosen = self._settings(sampler, steps, guidance, weak, temperature)
        prompts = self._prompts(text)
        image, mask = self._edit(image, mask)
        if count is None and (prompts is not None or image is not None):
            count = max(_longest(labels), _rows(prompts), 0 if image is None else len(image))
        count = _count(labels, count)
        _check_numbers(count, seed, first, batch)
        numbers = np.arange(first, first + count)
        cond = self._condition(self._label_ids(labels, count, seed, numbers), prompts, count)
        known = None if image is None or mask is None else self._known(image, mask, count)
        fixed = 0 if known is None else int(known.mask[0].sum())
        weak_task, weak_params = (weak.task, weak.variables["params"]["network"]) if weak else (None, None)
        program = sampling_program(self.task, sampler, chosen, weak_task, fixed=fixed, watch=trajectory)
        devices = self._devices
        inputs = placement.spread((self.variables, weak_params, np.uint32(seed)), replicated(devices))

        def made(inputs: PyTree, rows: Rows) -> tuple[Array, Array]:
            variables, weak_params, seed = inputs
            return program(variables, seed, rows, weak_params)

        own: Any = numbers.astype(np.uint32)  # on the host until it is spread over the devices
        rows = placement.parts(Rows(own, cond, known), batch, devices)
        parts = [placement.by_rows(made, devices, inputs, part) for part in rows]
        images, whole = (np.concatenate(arrays)[:count] for arrays in zip(*parts, strict=True))
        finite(images, whole, first)
        if image is None or mask is None:
            return images
        return editing.composed(images, np.resize(image, (count, *image.shape[1:])), mask)

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
        self._settings(None, None, None, None)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Latents `[B, h, w, c]`, as the network sees them; see `TokenizerModel.encode`."""
        return self.coder.encode(images)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Images uint8 `[B, H, W, 3]`; see `TokenizerModel.decode`."""
        return self.coder.decode(latents)

    def predict(self, x: Array, t: Array, labels: Mapping[str, Array], text: str | Cond | None = None) -> Any:
        """The bare network's `Prediction`.

        Args:
          x: inputs `[B, ...]`; of ids whole numbers up to the vocabulary, which is the mask.
          t: times `[B]`.
          labels: label ids `[B]` by name.
          text: as `sample` takes it, for a model that takes text.

        Raises:
          ModelError: for ids outside the vocabulary, and text that is missing or does not go with the model.
        """
        vocabulary = self.task.layout.vocabulary
        if vocabulary is not None:
            ids = np.asarray(x)
            if not np.issubdtype(ids.dtype, np.integer) or ids.min(initial=0) < 0 or ids.max(initial=0) > vocabulary:
                raise ModelError(f"token ids are whole numbers from 0 to {vocabulary}, the mask; some of these are not")
        cond = self._condition({name: np.asarray(ids) for name, ids in labels.items()}, self._prompts(text), len(x))
        everything = (self.variables["params"]["network"], x, t, cond)
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

    def _settings(
        self, sampler: Any, steps: int | None, weight: float | None, weak: Any, temperature: float | None = None
    ) -> tuple[Any, Any]:
        """The sampler and the guidance of a run."""
        sampler = sampler or self.sampler
        if sampler is None:
            raise ModelError("this model has no sampler of its own: pass sampler=")
        if not hasattr(sampler, "runs"):
            raise ModelError(f"a sampler is an object, such as maskdit.samplers.tokens.Confidence(), not {sampler!r}")
        if steps is not None:
            if not isinstance(steps, int | np.integer) or steps < 1:
                raise ModelError(f"a sampler takes 1 or more steps, a whole number, got {steps}")
            sampler = dataclasses.replace(sampler, steps=int(steps))
        if temperature is not None:
            if not hasattr(sampler, "temperature"):
                raise ModelError(f"{type(sampler).__name__} has no temperature: samplers of tokens have one")
            sampler = dataclasses.replace(sampler, temperature=started(sampler.temperature, float(temperature)))
        guidance = self.guidance
        if weak is not None:
            if weak.task.layout != self.task.layout:
                raise ModelError(f"the weak model makes {weak.task.layout}, and this one {self.task.layout}")
            guidance = WeakNetwork(weight=2.0 if weight is None else weight)
        elif weight is not None:
            guidance = None if weight == 1 else dataclasses.replace(guidance or ClassifierFree(), weight=float(weight))
        process = self.task.process.respace(sampler.grid(self.task.process, self.task.layout))
        runs = guided_runs(sampler, process, self.task.layout, guidance)  # refuses what does not go together
        if weak is None and any(run.guided for run in runs):
            self._check_guidance()
        return sampler, guidance

    def _check_guidance(self) -> None:
        """Refuses guidance by dropped conditions to a model that cannot drop them."""
        if not (self.task.network.classes or takes_text(self.task.network)):
            raise ModelError("this model has no labels to guide by: use guidance 1, or give a weak model")
        if not self.task.label_drop:
            raise ModelError(
                "this model was trained without dropping labels (label_drop=0), so it cannot guide itself: "
                "use guidance 1, or give a weak model"
            )

    def _prompts(self, text: str | Cond | None) -> Cond | None:
        """The texts that are given, as a condition without labels."""
        if isinstance(text, Cond):
            given = {TEXT: text.text, POOLED: text.pooled}
            check_conditions(self.task.network, {name: array for name, array in given.items() if array is not None})
            return dataclasses.replace(text, labels={})
        if text is not None:
            return read_prompts(text, self.task.network)
        if takes_text(self.task.network):
            raise ModelError("this model is conditioned on text: give a file of text embeddings (--text-embeddings)")
        return None

    def _condition(self, labels: Mapping[str, np.ndarray], prompts: Cond | None, count: int) -> Cond:
        """The condition of each image, NumPy arrays."""
        network = self.task.network
        if prompts is None:
            scalars = getattr(network, "scalars", {})
            rows: Any = {name: np.full((1,), value, np.float32) for name, value in scalars.items()}
            prompts = Cond(scalars=rows)
        taken = np.arange(count) % max(_rows(prompts), 1)
        given = jax.tree.map(lambda array: np.asarray(array)[taken], prompts)
        return dataclasses.replace(given, labels=dict(labels))

    def _edit(self, image: Any, mask: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
        """An image to edit, `[B, H, W, 3]`, and its mask."""
        if (image is None) != (mask is None):
            raise ModelError("an edit takes both an image and a mask")
        if image is None:
            return None, None
        image, mask = np.asarray(image), np.asarray(mask)
        image = image[None] if image.ndim == 3 else image
        if image.dtype != np.uint8:
            raise ModelError(f"an image to edit is uint8, got {image.dtype}")
        if mask.dtype != bool:
            raise ModelError(f"a mask is of bools, true where the image is made anew, got {mask.dtype}: mask > 127")
        tokenizer = self.task.tokenizer
        side = editing.side_of(self.task.layout, tokenizer.latent, codes_per_position(tokenizer))
        editing.check_edit(side, tokenizer.latent, image, mask)
        return image, mask

    def _known(self, image: np.ndarray, mask: np.ndarray, count: int) -> Known:
        """What stays of the images to edit, a row for each image that is made."""
        if len(image) not in (1, count):
            raise ModelError(f"{count} images are to be made and {len(image)} to be edited: give one, or one for each")
        known = editing.known_region(self.coder.encode(image), mask, self.task.layout, self.task.tokenizer.latent)
        return jax.tree.map(lambda array: array[np.arange(count) % len(array)], known)

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


def _rows(prompts: Cond | None) -> int:
    return max((len(leaf) for leaf in jax.tree.leaves(prompts)), default=0)


def _longest(labels: Labels | None) -> int:
    """Length of the longest list of labels; 0 where there is none."""
    return max((len(v) for v in (labels or {}).values() if not isinstance(v, str | int | np.integer)), default=0)


def _count(labels: Labels | None, count: int | None) -> int:
    if count is None:
        listed = [v for v in (labels or {}).values() if not isinstance(v, str | int | np.integer)]
        count = (_longest(labels) or 1) if listed else 16
    if count < 1:
        raise ModelError(f"count must be 1 or more, got {count}")
    return count


def _check_numbers(count: int, seed: int, first: int, batch: int) -> None:
    for name, value, least in (("seed", seed, 0), ("first", first, 0), ("batch", batch, 1)):
        if not least <= value < 2**32 - count:
            raise ModelError(f"{name} is {least} or more and below 2**32 - count, got {value}")

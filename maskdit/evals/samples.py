"""Samples of a generator by their numbers: as a stream, and as one array file that is drawn part by part.

All processes of a job call what is here together: each gets the images, the first one writes.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from maskdit import config as configs
from maskdit.contracts import Cond, ModelError
from maskdit.data.conditions import read_prompts
from maskdit.data.image_array import ImageArray, write_npz
from maskdit.data.source import DataError
from maskdit.interop.atomic import ending_on_sigterm, written_whole
from maskdit.networks.model import GeneratorModel, Labels
from maskdit.references import checksum
from maskdit.training import distributed, placement
from maskdit.training.mesh import MeshShape
from maskdit.training.progress import Counter

PART = 256
"""Images of a part, by their numbers; so many are lost at most where a job is cut off."""
_MANIFEST = "manifest.json"
_JOINED = "joined.npz"


def drawn(
    model: GeneratorModel,
    num: int,
    *,
    seed: int,
    batch: int,
    first: int = 0,
    labels: Labels | None = None,
    text: str | Cond | None = None,
    **sampling: Any,
) -> Iterator[tuple[int, np.ndarray]]:
    """Draws images `first` to `first + num - 1` of a seed, a batch at a time.

    An image depends on its number and the settings: not on where a run begins and ends, on batches, devices and
    processes (programs compiled for other batches and devices round otherwise: by 1 of 255, of token models also in
    which of two almost equally likely tokens is taken). All batches have one shape, and so one program.

    Args:
      model: the generator.
      num: number of images.
      seed: of all draws.
      batch: images made at once, rounded up to what divides over the devices; as many as there are where `num` is less.
      first: number of the first image.
      labels: as `GeneratorModel.sample` takes them; of a list, image i is given item i % n of n, whatever `first` is.
      text: a file of text embeddings or a condition, whose rows are given to the images in the same way.
      **sampling: other arguments of `GeneratorModel.sample`.

    Yields:
      The number of a batch's first image, and its images uint8 `[n, H, W, 3]`.

    Raises:
      ModelError, DataError: as `GeneratorModel.sample`, with the first batch.
    """
    if num < 1 or batch < 1:
        raise ModelError(f"1 image or more are drawn, 1 or more at once; got num={num} and batch={batch}")
    text = read_prompts(text, model.task.network) if isinstance(text, str) else text
    ways = placement.ways(MeshShape().make() if model.devices is None else model.devices)
    size = -(-min(batch, num) // ways) * ways
    for begin in range(first, first + num, size):
        numbers = np.arange(begin, begin + size)
        images = model.sample(
            in_turn(labels, numbers),
            count=size,
            first=begin,
            seed=seed,
            batch=size,
            text=None if text is None else _rows(text, numbers),
            **sampling,
        )
        yield begin, images[: first + num - begin]


def in_turn(labels: Labels | None, numbers: np.ndarray) -> Labels | None:
    """Labels for images of these numbers `[B]`: of a list of n, image i takes item i % n.

    Args:
      labels: label name -> class for all images, or a list, in turn; None for random ones.
      numbers: of the images.
    """
    if labels is None:
        return None
    listed = {name: not isinstance(given, str | int | np.integer) and len(given) > 0 for name, given in labels.items()}
    return {
        name: [given[number % len(given)] for number in numbers] if listed[name] else given  # type: ignore[index, arg-type]
        for name, given in labels.items()
    }


def _rows(text: Cond, numbers: np.ndarray) -> Cond:
    return jax.tree.map(lambda array: np.asarray(array)[numbers % len(array)], text)


def write_samples(
    model: GeneratorModel,
    npz: str,
    num: int,
    *,
    seed: int,
    batch: int,
    first: int = 0,
    beside: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> None:
    """Draws images into an uncompressed `.npz` file, part by part, and goes on where an earlier call was cut off.

    Parts of `PART` images lie in the folder `NPZ.parts` until all are there; then they are joined, and the folder goes
    away. Memory, and what is lost by an interruption, do not depend on `num`.

    Args:
      model: the generator.
      npz: the file, local or `gs://`.
      num, seed, batch, first: see `drawn`.
      beside: further arrays of the file.
      facts: what tells these samples from others besides the model, `num`, `seed` and `first`: JSON types. A call that
        goes on must have the same; batches, devices and processes may differ.
      **sampling: see `drawn`.

    Raises:
      ModelError: where the parts were begun with other settings, belong to something else, are being written by another
        process, or cannot be written.
      ModelError, DataError: as `drawn`.
    """
    draw = functools.partial(drawn, model, seed=seed, batch=batch, **sampling)
    parts = _Parts(epath.Path(f"{npz}.parts"), num, first)
    manifest = _manifest(model, num, seed, first, facts or {})
    with contextlib.ExitStack() as stack:
        distributed.first(lambda: parts.begin(stack, manifest))
        missing = distributed.first(parts.missing)
        stack.enter_context(ending_on_sigterm())
        if distributed.is_first() and len(missing) < len(parts):
            print(f"{parts.folder}: {len(parts) - len(missing)} of {len(parts)} parts are there, going on", flush=True)
        _draw_parts(parts, missing, draw, manifest)
        distributed.first(lambda: parts.join(epath.Path(npz), beside))


def _draw_parts(parts: "_Parts", missing: list[int], draw: Any, manifest: Mapping[str, Any]) -> None:
    """Draws the missing parts; those that follow each other in one go, so that batches cross their borders."""
    total = sum(len(parts.range(number)) for number in missing)
    with Counter(total, "images", show=distributed.is_first()) as counter:
        for begin, end in _runs(missing):
            numbers = range(parts.range(begin).start, parts.range(end - 1).stop)
            waiting: list[np.ndarray] = []
            for _, images in draw(len(numbers), first=numbers.start):
                waiting.append(images)
                counter.add(len(images))
                while begin < end and sum(map(len, waiting)) >= (size := len(parts.range(begin))):
                    joined = np.concatenate(waiting)
                    waiting = [joined[size:]]
                    if distributed.is_first():
                        parts.write(begin, joined[:size], manifest)
                    begin += 1


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as ranges `[begin, end)`."""
    for place, number in enumerate(numbers):
        if place == 0 or numbers[place - 1] != number - 1:
            begin = number
        if place + 1 == len(numbers) or numbers[place + 1] != number + 1:
            yield begin, number + 1


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Which images belong to which file: consecutive ones, `PART` to each but the last.

    Attributes:
      folder: of the files.
      num: images of all parts.
      first: number of the first image.
    """

    folder: epath.Path
    num: int
    first: int

    def __len__(self) -> int:
        return -(-self.num // PART)

    def path(self, number: int) -> epath.Path:
        return self.folder / f"{number:06d}.npy"

    def range(self, number: int) -> range:
        """Numbers of a part's images."""
        return range(self.first + number * PART, self.first + min((number + 1) * PART, self.num))

    def begin(self, stack: contextlib.ExitStack, manifest: Mapping[str, Any]) -> None:
        """Holds the folder until the stack is left, and sees that what lies there belongs to these samples."""
        with self._told():
            self.folder.mkdir(parents=True, exist_ok=True)
            if "://" not in str(self.folder):  # buckets have no locks
                self._hold(stack)
            stack.callback(self._remove_if_empty)
            for path in self._contents():
                if ".unfinished-" in path.name:  # of a process that was killed
                    path.rmtree()
        if not self._contents():
            return
        before = self._read_manifest()
        if difference := _difference(before, manifest):
            raise ModelError(
                f"{self.folder} was begun with other settings: {difference}. Run the command with those to go on, "
                "remove the folder to begin anew, or name another file with --npz"
            )

    def missing(self) -> list[int]:
        """The parts that are not there in full."""
        return [number for number in range(len(self)) if not self._complete(number)]

    def write(self, number: int, images: np.ndarray, manifest: Mapping[str, Any]) -> None:
        """Writes a part, whole or not at all; with the first one what they all are of."""
        with self._told():
            if not (self.folder / _MANIFEST).exists():  # not before there is something to go on with
                with written_whole(self.folder / _MANIFEST) as path:
                    path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
            with written_whole(self.path(number)) as path, path.open("wb") as file:
                np.save(file, images, allow_pickle=False)

    def join(self, target: epath.Path, beside: Mapping[str, Any] | None) -> None:
        """Makes one file of the parts, and removes them."""
        arrays = [ImageArray(str(self.path(number))) for number in range(len(self))]
        images = (some for array in arrays for some in array.batches(PART))
        # a killed process leaves it among the parts, with which it goes away
        joined = target if "://" in str(target) else self.folder / _JOINED
        with self._told():
            with written_whole(joined) as path:
                write_npz(path, (self.num, *arrays[0].shape[1:]), images, beside)
            if joined != target:
                joined.replace(target)
            for number in range(len(self)):
                self.path(number).unlink()
            (self.folder / _MANIFEST).unlink()  # after the parts, which without it would be those of nobody

    def _complete(self, number: int) -> bool:
        if not self.path(number).exists():
            return False
        images, count = ImageArray(str(self.path(number))), len(self.range(number))
        try:
            return images.shape[0] == count and any(True for _ in images.batches(1, count - 1))  # the last one is there
        except DataError:
            return False

    def _hold(self, stack: contextlib.ExitStack) -> None:
        from maskdit.data.latent_shards import FolderInUse, held  # takes ArrayRecord, which Windows has not

        try:
            stack.enter_context(held(pathlib.Path(self.folder)))
        except FolderInUse:
            raise ModelError(
                f"another process draws into {self.folder} now: wait for its end, or name another file with --npz"
            ) from None

    def _read_manifest(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / _MANIFEST).read_text()))
        except (OSError, ValueError):
            raise ModelError(
                f"{self.folder} holds files without a {_MANIFEST} that can be read, of something else: remove the "
                "folder, or name another file with --npz"
            ) from None

    def _contents(self) -> list[epath.Path]:
        """Files in the folder, which in a bucket is not there where it has none."""
        return [path for path in self.folder.iterdir() if path.name != ".lock"] if self.folder.exists() else []

    def _remove_if_empty(self) -> None:
        if self.folder.exists() and not self._contents():
            self.folder.rmtree()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tells what the disk refuses in a sentence."""
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"cannot write to {self.folder}: {error.strerror or error}; what is complete stays. The file takes its "
                "size twice until it is done: make room, and run the same command again, it goes on from there"
            ) from error


def _manifest(model: GeneratorModel, num: int, seed: int, first: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the parts are of; JSON types."""
    config = {} if model.config is None else json.loads(configs.to_json(model.config))
    made = {key: config.get(key) for key in ("task", "sampler", "guidance")}
    weights = {"ema": model.ema, "step": model.step, "weights": checksum(model.variables)}
    found = {"part": PART, "num": num, "seed": seed, "first": first, **facts, **weights, "config": made}
    return dict(json.loads(json.dumps(found)))


def _difference(before: Any, now: Any, path: str = "") -> str:
    """The first entry in which two manifests differ, in words; empty where there is none."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = (_difference(before.get(key), now.get(key), f"{path}.{key}") for key in {**now, **before})
        return next((one for one in found if one), "")
    if before == now:
        return ""
    return f"{path[1:]} was {_short(before)}, and is {_short(now)} now"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:76]} ..."

"""Batches of records, in an order that depends on nothing but the seed.

The order is an endless one: a shuffled pass over the source, another one, and so on. Step s takes the places
`s * batch ... (s + 1) * batch - 1` of it. Row i of the batch is place `s * batch + i`; the place and the seed alone say
which record it shows and whether mirrored. A process makes the rows it is asked for and no others. The step is thus the
whole state of the input: it resumes anywhere, on any number of processes, threads and workers.
"""

import dataclasses
import functools
import logging
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from maskdit.data.source import RESERVED, DataError, Record, Source, UnreadableRecord, check_record
from maskdit.data.transforms import centre_crop, flips, resize

Batch = dict[str, Any]
_LOG = logging.getLogger(__name__)
_FITS = {"crop": centre_crop, "resize": resize}
_ENDLESS = 2**40  # steps


@dataclasses.dataclass(frozen=True)
class Loader:
    """Makes batches of a source's records.

    Attributes:
      source: the records.
      size: side of the images, in pixels.
      fit: how an image becomes a square: `crop` (ADM centre crop) or `resize` (the whole image, squeezed).
      flip: whether each image is mirrored with probability one half.
      shuffle: whether each pass takes the records in another random order; else as the source has them.
      threads: threads that make batches ahead; 0 makes each batch when it is asked for.
      workers: processes that make batches ahead; 0 for none. They take seconds to start and pay where decoding keeps
        several cores busy. A script that uses them needs an `if __name__ == "__main__"` guard.
      prefetch: batches kept ready, in each worker where there are workers.

    Raises:
      DataError: for a field out of its range.
    """

    source: Source
    size: int = 64
    fit: str = "crop"
    flip: bool = True
    shuffle: bool = True
    threads: int = 2
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self) -> None:
        if self.fit not in _FITS:
            raise DataError(f"fit is one of {', '.join(_FITS)}; got '{self.fit}'")
        for name, least in (("size", 1), ("threads", 0), ("workers", 0)):
            _at_least(name, getattr(self, name), least)
        _at_least("prefetch (as large as threads)", self.prefetch, max(1, self.threads))

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Label name -> class names, of the source."""
        return self.source.vocabulary

    def batches(self, seed: int, batch: int, start: int = 0, rows: Iterable[int] | None = None) -> "Batches":
        """The endless stream of training batches from step `start` on.

        Each is a dict of `image` uint8 `[b, size, size, 3]`, a class number int32 `[b]` for each label, `row` int32
        `[b]` (the row's number in the global batch), and `replaced`, an int for the host: how many of these rows show
        another record because theirs could not be read. Such a row takes the next record of the pass.

        Args:
          seed: 0 to 2**32 - 1.
          batch: rows of the global batch.
          start: the first step.
          rows: which rows of the global batch this process makes, in this order; None for all.

        Raises:
          DataError: for an argument out of its range, and, while iterating, where no record of the source can be read.
        """
        if not 0 <= seed < 2**32:
            raise DataError(f"seed is 0 to 2**32 - 1; got {seed}")
        _at_least("batch", batch, 1)
        _at_least("start", start, 0)
        numbers = _rows(rows, batch)
        count = _count(self.source)
        if count < batch:
            _LOG.warning("the source has %d records, less than a batch of %d: batches show records twice", count, batch)
        make = _Training(self, seed, batch, numbers)
        return self._iterate(grain.MapDataset.range(start, _ENDLESS).map(make), self.workers)

    def ordered(self, batch: int, limit: int | None = None, rows: Iterable[int] | None = None) -> "Batches":
        """One pass in the source's order, neither shuffled nor mirrored: for held-out losses, to fit tokenizers.

        Batches are as those of `batches`, with `weight` float32 `[b]`: 0 for rows that only fill the last batch (they
        show the first records again) and for rows whose record could not be read, else 1. Every readable record thus
        counts once. Worker processes are not used.

        Args:
          batch: rows of the global batch.
          limit: at most so many records, spread evenly over the source; None for all.
          rows: which rows of the global batch this process makes; None for all.

        Raises:
          DataError: for an argument out of its range, and, while iterating, where no record of the source can be read.
        """
        _at_least("batch", batch, 1)
        count = _count(self.source)
        if limit is not None:
            _at_least("limit", limit, 1)
        taken = count if limit is None else min(limit, count)
        make = _Ordered(self, batch, _rows(rows, batch), taken)
        return self._iterate(grain.MapDataset.range(-(-taken // batch)).map(make), 0)

    def _iterate(self, made: grain.MapDataset, workers: int) -> "Batches":
        if taken := set(self.vocabulary) & set(RESERVED):
            raise DataError(f"the source calls a label '{min(taken)}', a name with another use in a batch: rename it")
        buffer = self.prefetch if self.threads else 0
        stream = made.to_iter_dataset(grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=buffer))
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads its flags before it starts workers; notebooks parse none
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=self.prefetch)
            stream = stream.mp_prefetch(options)
        return Batches(iter(stream), shared=workers > 0)


class Batches(Iterator[Batch]):
    """Batches made ahead by threads or worker processes; begins at once. Unreadable records are logged, each once.

    Close it, or use it in a `with` statement; before an `os._exit` above all, which worker processes would outlive.
    """

    def __init__(self, stream: Any, shared: bool):
        self._streams, self._shared = [stream], shared
        self._named: set[str] = set()
        self._end = weakref.finalize(self, _close, self._streams)  # also when lost, and at the interpreter's exit
        stream.start_prefetch()

    def __next__(self) -> Batch:
        if not self._streams:
            raise StopIteration
        made = next(self._streams[0])
        if made["error"]:
            self.close()
            raise DataError(made["error"])
        for name in made["unreadable"]:
            if name not in self._named:
                self._named.add(name)
                _LOG.warning("unreadable record, the next one takes its place: %s", name)
        if not self._shared:
            return made["batch"]
        # out of the memory shared with the worker: it goes away with the array, and a device may alias the array
        return {name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in made["batch"].items()}

    def close(self) -> None:
        """Ends the threads or worker processes."""
        self._end()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _close(streams: list[Any]) -> None:
    while streams:
        streams.pop().close()


@dataclasses.dataclass(frozen=True)
class _Training:
    """Makes the batch of a step."""

    loader: Loader
    seed: int
    batch: int
    rows: np.ndarray

    def __call__(self, step: int) -> dict[str, Any]:
        places = int(step) * self.batch + self.rows  # [b]
        mirrored = flips(self.seed, places) if self.loader.flip else np.zeros(len(places), bool)
        return _make(self.loader, self.rows, [self.candidates(int(place)) for place in places], mirrored)

    def candidates(self, place: int) -> Iterator[int]:
        """The record of a place, then the others of its pass, in order."""
        count = len(self.loader.source)
        begin = place - place % count
        for later in range(count):
            yield self._order[begin + (place - begin + later) % count]

    @functools.cached_property
    def _order(self) -> grain.MapDataset:
        order = grain.MapDataset.range(len(self.loader.source)).seed(self.seed)
        return (order.shuffle() if self.loader.shuffle else order).repeat()


@dataclasses.dataclass(frozen=True)
class _Ordered:
    """Makes the batches of one pass over `taken` records."""

    loader: Loader
    batch: int
    rows: np.ndarray
    taken: int

    def __call__(self, step: int) -> dict[str, Any]:
        places = int(step) * self.batch + self.rows  # [b]
        still = np.zeros(len(places), bool)
        return _make(self.loader, self.rows, [self.candidates(int(p)) for p in places], still, places < self.taken)

    def candidates(self, place: int) -> Iterator[int]:
        """The record of a place, then all others."""
        count = len(self.loader.source)
        first = place % self.taken * count // self.taken
        for later in range(count):
            yield (first + later) % count


def _make(
    loader: Loader,
    rows: np.ndarray,
    candidates: list[Iterator[int]],
    mirrored: np.ndarray,
    counts: np.ndarray | None = None,
) -> dict[str, Any]:
    """Fills a batch. An error travels as text: raised in a worker, it would come wrapped in a traceback."""
    names = list(loader.vocabulary)
    images = np.empty((len(rows), loader.size, loader.size, 3), np.uint8)
    labels = {name: np.empty(len(rows), np.int32) for name in names}
    unreadable: list[str] = []
    replaced = np.zeros(len(rows), bool)
    try:
        for i, choices in enumerate(candidates):
            record, broken = _first_readable(loader.source, choices)
            image = _FITS[loader.fit](record["image"], loader.size)
            images[i] = image[:, ::-1] if mirrored[i] else image
            for name in names:
                labels[name][i] = record[name]
            unreadable += broken
            replaced[i] = bool(broken)
    except DataError as error:
        return {"batch": {}, "unreadable": [], "error": str(error)}
    batch: Batch = {"image": images, **labels, "row": rows.astype(np.int32), "replaced": int(replaced.sum())}
    if counts is not None:
        batch["weight"] = (counts & ~replaced).astype(np.float32)
    return {"batch": batch, "unreadable": unreadable, "error": ""}


def _first_readable(source: Source, candidates: Iterator[int]) -> tuple[Record, list[str]]:
    """The first record that can be read, and what was wrong with those before it."""
    broken: list[str] = []
    for index in candidates:
        try:
            record = source[index]
            check_record(source, index, record)
            return record, broken
        except UnreadableRecord as error:
            broken.append(str(error))
    raise DataError(
        f"none of the {len(broken)} records can be read; the first was {broken[0]}: check that the data are complete "
        "and that the source is set to the right features"
    )


def _rows(rows: Iterable[int] | None, batch: int) -> np.ndarray:
    numbers = np.arange(batch) if rows is None else np.asarray(list(rows))
    if (
        len(numbers) == 0
        or not np.issubdtype(numbers.dtype, np.integer)
        or not np.all((numbers >= 0) & (numbers < batch))
    ):
        raise DataError(
            f"rows are one or more of 0 to {batch - 1}, the rows of a batch of {batch}; got {numbers.tolist()}"
        )
    return numbers.astype(np.int64)


def _count(source: Source) -> int:
    count = len(source)
    if count == 0:
        raise DataError(f"{source!r} has no records: choose another split or path")
    return count


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise DataError(f"{name} must be {least} or more; got {value}")

"""Batches of records, in an order that depends on nothing but the seed.

The order is an endless one: a shuffled pass over the source, another one, and so on. Step s takes the places
`s * batch ... (s + 1) * batch - 1` of it. Row i of the batch is place `s * batch + i`; the place and the seed alone say
which record it shows and whether mirrored. A process makes the rows it is asked for and no others. The step is thus the
whole state of the input: it resumes anywhere, on any number of processes, threads and workers.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from maskdit.data.batches import Batch, Batches
from maskdit.data.embeddings import DECODER_TEXT, NULL, POOLED, TEXT, Embeddings, Texts
from maskdit.data.hashed_words import HashedWords
from maskdit.data.images import FITS, Images
from maskdit.data.latents import Encoded
from maskdit.data.source import RESERVED, DataError, Source, UnreadableRecord, fields_only
from maskdit.data.transforms import flips

_LOG = logging.getLogger(__name__)
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
      latents: a folder that `maskdit encode` has made of the source: batches hold latents in place of images, and the
        source is not read. It must have been made with the same `size` and `fit`.
      text: a file of text embeddings with a row for each record, see `maskdit.data.embeddings.Embeddings`; or hashed
        words of the source's captions. With `latents`, those that the folder holds are taken.

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
    latents: str | None = None
    text: str | HashedWords | None = None

    __getstate__ = fields_only

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise DataError(f"fit is one of {', '.join(FITS)}; got '{self.fit}'")
        for name, least in (("size", 1), ("threads", 0), ("workers", 0)):
            _at_least(name, getattr(self, name), least)
        _at_least("prefetch (as large as threads)", self.prefetch, max(1, self.threads))

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Label name -> class names, of the source, or of the folder of latents."""
        return self.records.vocabulary

    @functools.cached_property
    def records(self) -> Encoded | Images:
        """What is read: the folder of latents where one is set, else the source's images.

        Raises:
          DataError: where the folder or the file of texts does not go with the other fields.
        """
        if self.latents is None:
            return Images(self.source, self.size, self.fit, self.texts)
        folder = Encoded(self.latents)
        folder.check(size=self.size, fit=self.fit, flip=self.flip, text=self.text is not None, source=self.source)
        return folder

    @functools.cached_property
    def texts(self) -> Texts | None:
        """The embedded texts of the source's records, where `text` is set.

        Raises:
          DataError: for hashed words of a source without captions.
        """
        if self.text is None:
            return None
        return Embeddings(self.text) if isinstance(self.text, str) else self.text.of(self.source)

    def check_tokenizer(self, tokenizer: Any, variables: Any) -> None:
        """Refuses a folder of latents that another tokenizer has made; does nothing where images are read.

        Args:
          tokenizer: the module of the run; None for a run that has none.
          variables: its variables by collection; None for a run that trains it.

        Raises:
          DataError: naming both tokenizers.
        """
        if self.latents is None:
            return
        if tokenizer is None or variables is None:
            raise DataError("data.latents is for runs that train on a frozen tokenizer's latents: set it to None")
        Encoded(self.latents).check_tokenizer(tokenizer, variables)

    def batches(self, seed: int, batch: int, start: int = 0, rows: Iterable[int] | None = None) -> Batches:
        """The endless stream of training batches from step `start` on.

        Each is a dict of `image` uint8 `[b, size, size, 3]`, a class number int32 `[b]` for each label, `row` int32
        `[b]` (the row's number in the global batch), and `replaced`, an int for the host: how many of these rows show
        another record because theirs could not be read. Such a row takes the next record of the pass. Texts
        come with them as `text` `[b, T, D]`, `pooled` `[b, P]`, numbers `scalar/NAME` `[b]`, and `null_text` and
        `null_pooled`, repeated for each row, as far as there are such. With `latents`, `moments`, `values` or `ids`
        stands in place of `image`, as it is stored (ids as int32), of the mirror image where the image would be
        mirrored.

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
        count = _count(self.records)
        if count < batch:
            _LOG.warning("the source has %d records, less than a batch of %d: batches show records twice", count, batch)
        make = _Training(self, seed, batch, numbers)
        return self._iterate(grain.MapDataset.range(start, _ENDLESS).map(make), self.workers)

    def ordered(self, batch: int, limit: int | None = None, rows: Iterable[int] | None = None) -> Batches:
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
        count = _count(self.records)
        if limit is not None:
            _at_least("limit", limit, 1)
        taken = count if limit is None else min(limit, count)
        make = _Ordered(self, batch, _rows(rows, batch), taken)
        return self._iterate(grain.MapDataset.range(-(-taken // batch)).map(make), 0)

    def images(self, batch: int, limit: int | None = None) -> Iterator[np.ndarray]:
        """The readable images in the source's order, uint8 `[b, size, size, 3]`, as tokenizers are fitted to them.

        Args:
          batch: images of an array, at most.
          limit: at most so many records, spread evenly over the source; None for all.

        Raises:
          DataError: where there are latents in place of images.
        """
        if self.latents is not None:
            raise DataError(
                "this tokenizer is fitted to images, and data.latents gives latents: set --config.task.tokenizer to "
                "the checkpoint that made them, or --config.data.latents=None"
            )
        with self.ordered(batch, limit) as batches:
            for one in batches:
                yield one["image"][one["weight"] > 0]

    def once(self, batch: int, indices: Iterable[int]) -> Batches:
        """The records of these numbers in this order, each once, not mirrored: for what is written about each.

        Batches are as those of `batches`, without `row` and `replaced`, and with `index` int64 `[b]`, the record's
        number, -1 in rows that only fill the last batch, and `unreadable` `[b]`, a list of strings: why the record
        could not be read; its arrays are zeros then.

        Args:
          batch: rows.
          indices: numbers of records.
        """
        _at_least("batch", batch, 1)
        _count(self.records)
        numbers = np.asarray(list(indices), np.int64)
        made = grain.MapDataset.range(-(-len(numbers) // batch)).map(_Once(self, batch, numbers))
        return self._iterate(made, self.workers, "unreadable record: %s")

    def _iterate(
        self, made: grain.MapDataset, workers: int, saying: str = "unreadable record, the next one takes its place: %s"
    ) -> Batches:
        reserved = {*RESERVED, TEXT, POOLED, DECODER_TEXT, *NULL} if self.text else {*RESERVED}
        if taken := set(self.vocabulary) & reserved:
            raise DataError(f"the source calls a label '{min(taken)}', a name with another use in a batch: rename it")
        buffer = self.prefetch if self.threads else 0
        stream = made.to_iter_dataset(grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=buffer))
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads its flags before it starts workers; notebooks parse none
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=self.prefetch)
            stream = stream.mp_prefetch(options)
        return Batches(iter(stream), workers > 0, saying)


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
        count = len(self.loader.records)
        begin = place - place % count
        for later in range(count):
            yield self._order[begin + (place - begin + later) % count]

    @functools.cached_property
    def _order(self) -> grain.MapDataset:
        order = grain.MapDataset.range(len(self.loader.records)).seed(self.seed)
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
        count = len(self.loader.records)
        first = place % self.taken * count // self.taken
        for later in range(count):
            yield (first + later) % count


@dataclasses.dataclass(frozen=True)
class _Once:
    """Makes the batches of records that are shown once."""

    loader: Loader
    batch: int
    numbers: np.ndarray

    def __call__(self, step: int) -> dict[str, Any]:
        numbers = self.numbers[int(step) * self.batch :][: self.batch]
        made = _empty(self.loader, self.batch, zeros=True)
        unreadable = [""] * self.batch
        try:
            for i, number in enumerate(numbers):
                try:
                    _fill(made, i, self.loader.records.read(int(number), False))
                except UnreadableRecord as error:
                    unreadable[i] = str(error)
        except DataError as error:
            return {"batch": {}, "unreadable": [], "error": str(error)}
        index = np.concatenate([numbers, np.full(self.batch - len(numbers), -1)])
        batch = {**made, "index": index, "unreadable": unreadable}
        return {"batch": batch, "unreadable": [said for said in unreadable if said], "error": ""}


def _make(
    loader: Loader,
    rows: np.ndarray,
    candidates: list[Iterator[int]],
    mirrored: np.ndarray,
    counts: np.ndarray | None = None,
) -> dict[str, Any]:
    """Fills a batch. An error travels as text: raised in a worker, it would come wrapped in a traceback."""
    unreadable: list[str] = []
    replaced = np.zeros(len(rows), bool)
    try:
        made = _empty(loader, len(rows))
        for i, choices in enumerate(candidates):
            record, broken = _first_readable(loader.records, choices, bool(mirrored[i]))
            _fill(made, i, record)
            unreadable += broken
            replaced[i] = bool(broken)
    except DataError as error:
        return {"batch": {}, "unreadable": [], "error": str(error)}
    batch: Batch = {**made, "row": rows.astype(np.int32), "replaced": int(replaced.sum())}
    if counts is not None:
        batch["weight"] = (counts & ~replaced).astype(np.float32)
    return {"batch": batch, "unreadable": unreadable, "error": ""}


def _empty(loader: Loader, rows: int, zeros: bool = False) -> dict[str, np.ndarray]:
    make = np.zeros if zeros else np.empty
    return {name: make((rows, *shape), dtype) for name, (shape, dtype) in loader.records.arrays.items()}


def _fill(made: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> None:
    for name, array in made.items():
        array[row] = record[name]


def _first_readable(
    records: Encoded | Images, candidates: Iterator[int], mirrored: bool
) -> tuple[dict[str, Any], list[str]]:
    """The first record that can be read, and what was wrong with those before it."""
    broken: list[str] = []
    for index in candidates:
        try:
            return records.read(index, mirrored), broken
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


def _count(records: Encoded | Images) -> int:
    count = len(records)
    if count == 0:
        named = records.source if isinstance(records, Images) else records
        raise DataError(f"{named!r} has no records: choose another split or path")
    return count


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise DataError(f"{name} must be {least} or more; got {value}")

"""Encoding the records of a loader into shards: reading, computing and writing go on side by side."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import numpy as np

from maskdit.data.latent_shards import Shards, ShardWriter
from maskdit.data.latents import LATENTS, Stream
from maskdit.data.loader import Loader

_AHEAD = 3
"""Batches on their way between the devices and the disk: the device never waits for either."""


class EncodingError(ValueError):
    """A data set that cannot be encoded as asked; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is encoded, and how it is stored.

    Attributes:
      loader: gives images, and texts where it has any.
      streams: what is stored, by name.
      shards: where.
      flips: whether mirror images are encoded too.
      names: whether each record's name is stored.
      batch: images encoded at once.
    """

    loader: Loader
    streams: dict[str, Stream]
    shards: Shards
    flips: bool
    names: bool
    batch: int

    @property
    def latents(self) -> str:
        """The name of the stream that the tokenizer makes."""
        return next(name for name in self.streams if name in LATENTS)


def write_records(
    job: Job,
    encoder: Callable[[np.ndarray], list[Any]],
    numbers: Sequence[int],
    writer: ShardWriter,
    progress: Callable[[int], None],
) -> None:
    """Encodes the records of shards and writes them.

    Args:
      job: what is encoded.
      encoder: starts to encode uint8 images `[B, H, W, 3]` and gives an array `[B, ...]` for each copy, as
        `maskdit.tokenizers.streams.Encoder` does.
      numbers: of the shards.
      writer: where records go.
      progress: called with the number of records after each batch.

    Raises:
      EncodingError: for latents that are not finite.
      DataError, OSError, RuntimeError: where records cannot be read or written.
    """
    indices = [index for number in numbers for index in job.shards.range(number)]
    waiting: collections.deque[concurrent.futures.Future[int]] = collections.deque()
    with (
        concurrent.futures.ThreadPoolExecutor(1, "maskdit-shards") as thread,
        job.loader.once(job.batch, indices) as batches,
    ):
        for batch in batches:
            made = encoder(batch["image"])
            waiting.append(thread.submit(_store, job, batch, made, writer))
            if len(waiting) == _AHEAD:
                progress(waiting.popleft().result())
        for future in waiting:
            progress(future.result())


def _store(job: Job, batch: dict[str, Any], made: list[Any], writer: ShardWriter) -> int:
    """Waits for the devices and writes the records of a batch; gives how many."""
    copies = [np.asarray(copy) for copy in made]
    arrays = {name: copies if name == job.latents else [batch[name]] for name in job.streams}
    labels = job.loader.vocabulary
    rows = np.flatnonzero(batch["index"] >= 0)
    for row in rows:
        index, said = int(batch["index"][row]), batch["unreadable"][row]
        fields: dict[str, Any] = {"unreadable": said} if said else {}
        for name, stream in {} if said else job.streams.items():
            found = [copy[row] for copy in arrays[name]]
            _check_finite(found, name, job, index)
            fields[name] = stream.pack(found)
        if not said:
            fields |= {label: int(batch[label][row]) for label in labels}
        if job.names:
            fields["name"] = job.loader.source.describe(index)
        writer.write(index, msgpack.packb(fields))
    return len(rows)


def _check_finite(copies: list[np.ndarray], name: str, job: Job, index: int) -> None:
    if all(np.isfinite(copy).all() for copy in copies):
        return
    whose = f"the {name} of {job.loader.source.describe(index)}"
    if name != job.latents:
        raise EncodingError(f"{whose} are not finite: make the embeddings again")
    if job.streams[name].dtype == "float16" and not any(np.isnan(copy).any() for copy in copies):
        raise EncodingError(f"{whose} are beyond 65504, the range of float16: encode with float32 into another folder")
    raise EncodingError(
        f"{whose} are not finite: the tokenizer's weights are broken, or its compute dtype is too small for them"
    )

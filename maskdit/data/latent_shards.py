"""Writing encoded folders: a shard is written whole or not at all, so that a writer killed at any point can go on."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from maskdit.data.latents import EMPTY_TEXT, MANIFEST, shard_name

_OPTIONS = "group_size:1,uncompressed"  # one record at a time is read; latents hardly compress
_UNFINISHED = ".unfinished-"


class ShardError(OSError):
    """A shard that cannot be written; the message is the system's."""


class FolderInUse(Exception):
    """Another process writes the folder."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """Which records belong to which file: consecutive ones, the same number to each but the last.

    Attributes:
      folder: of the files.
      records: of all shards.
      size: records of a shard.
    """

    folder: pathlib.Path
    records: int
    size: int

    def __len__(self) -> int:
        """Number of shards."""
        return -(-self.records // self.size)

    def path(self, number: int) -> pathlib.Path:
        """The file of a shard."""
        return self.folder / shard_name(number, len(self))

    def range(self, number: int) -> range:
        """The records of a shard."""
        return range(number * self.size, min((number + 1) * self.size, self.records))

    def complete(self, number: int) -> bool:
        """Whether a shard's file is there and holds as many records as it should."""
        return self.path(number).exists() and _count(self.path(number)) == len(self.range(number))

    def missing(self) -> list[int]:
        """The shards that are not complete."""
        return [number for number in range(len(self)) if not self.complete(number)]


class ShardWriter:
    """Writes records, in rising order, into their shards; a context manager.

    A shard is written under another name, and takes its own when all its records are on the disk. Leaving the context
    removes one that is not complete.

    Args:
      shards: the folder's.
    """

    def __init__(self, shards: Shards):
        self._shards = shards
        self._writer: Any = None
        self._number, self._written, self._failed = -1, 0, False

    def write(self, index: int, record: bytes) -> None:
        """Adds record `index`, the next of its shard or the first of another.

        Raises:
          ShardError: where it cannot be written; nothing more is written then.
        """
        if self._failed:
            raise ShardError("an earlier record could not be written")
        self._failed = True
        try:
            self._add(index, record)
        except (OSError, RuntimeError) as error:
            raise ShardError(str(error).splitlines()[0]) from error
        self._failed = False

    def close(self) -> None:
        """Removes a shard that is not complete."""
        if self._writer is not None:
            with contextlib.suppress(RuntimeError, OSError):  # it failed before, and goes away
                self._writer.close()
            self._writer = None
            with contextlib.suppress(OSError):
                self._unfinished.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _unfinished(self) -> pathlib.Path:
        return self._shards.folder / f"{_UNFINISHED}{shard_name(self._number, len(self._shards))}"

    def _add(self, index: int, record: bytes) -> None:
        if self._writer is None:
            self._number, self._written = index // self._shards.size, 0
            self._writer = ArrayRecordWriter(str(self._unfinished), _OPTIONS)
        if index != self._shards.range(self._number)[self._written]:
            raise RuntimeError(f"record {index} is not the next of shard {self._number}")
        self._writer.write(record)
        self._written += 1
        if self._written == len(self._shards.range(self._number)):
            self._finish()

    def _finish(self) -> None:
        self._writer.close()
        if _count(self._unfinished) != self._written:
            raise RuntimeError(f"{self._unfinished.name} does not hold what was written to it")
        _to_disk(self._unfinished)
        self._unfinished.replace(self._shards.path(self._number))
        _to_disk(self._shards.folder)
        self._writer = None


def write_manifest(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest, whole or not at all.

    Raises:
      OSError: where it cannot be written.
    """
    _write_whole(folder / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def write_empty_text(folder: pathlib.Path, null: Mapping[str, np.ndarray]) -> None:
    """Writes the embeddings of the empty text, whole or not at all.

    Raises:
      OSError: where they cannot be written.
    """
    packed = io.BytesIO()
    np.savez(packed, **null)  # type: ignore[arg-type]
    _write_whole(folder / EMPTY_TEXT, packed.getvalue())


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what a killed writer has left."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        path.unlink()


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder against a second writer; the system lets go of it where this process is killed.

    Raises:
      FolderInUse: where another process holds it.
    """
    import fcntl  # not on Windows, nor is ArrayRecord

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUse(str(folder)) from error
        except OSError:
            pass  # a file system without locks
        yield


def _count(path: pathlib.Path) -> int:
    """Records of a file; -1 for one that is cut off or damaged."""
    try:
        reader = ArrayRecordReader(str(path))
        try:
            return reader.num_records() if reader.ok() else -1
        finally:
            reader.close()
    except (RuntimeError, OSError):
        return -1


def _write_whole(path: pathlib.Path, data: bytes) -> None:
    unfinished = path.with_name(f"{_UNFINISHED}{path.name}")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    _to_disk(path.parent)


def _to_disk(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

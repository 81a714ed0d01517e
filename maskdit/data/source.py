"""What a source of records is, and the two errors of reading data."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

Record = dict[str, Any]
RESERVED = ("image", "row", "replaced", "weight")


class DataError(ValueError):
    """Data that cannot be used as asked for; the message says what was found, what was expected and what to do."""


class UnreadableRecord(Exception):
    """One record that cannot be read. The loader takes another one in its place, names it and counts it.

    Attributes:
      name: the record, as `Source.describe` names it.
      reason: what went wrong, in a few words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@runtime_checkable
class Source(Protocol):
    """Records by number.

    A source is made without touching a file, opens what it needs at first use, can be read from several threads, and
    can be pickled (worker processes open their own files).
    """

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """Record `index`: `image` uint8 `[H, W, 3]` of any size, and an int for each label of the vocabulary.

        Raises:
          UnreadableRecord: where this one record is broken.
        """
        ...

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Label name -> class names, in the order of their numbers; empty for unlabelled data."""
        ...

    def describe(self, index: int, /) -> str:
        """Names a record for messages: its file, or its number and what is known of it."""
        ...


def fields_only(source: Any) -> dict[str, Any]:
    """The fields of a dataclass and nothing that it has opened since: a `__getstate__` for sources with open files."""
    return {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}


def check_record(source: Source, index: int, record: Record) -> None:
    """Checks what a source returned.

    Raises:
      DataError: where the image is not uint8 `[H, W, 3]` or a label is missing: the source is wrong.
      UnreadableRecord: where a class number is outside the vocabulary: this record is.
    """
    image = record.get("image")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"{source.describe(index)}: a source gives 'image' as a uint8 array [H, W, 3]; got {found}")
    for name, classes in source.vocabulary.items():
        if name not in record:
            raise DataError(f"{source.describe(index)}: the record has no label '{name}'; it has {sorted(record)}")
        if not 0 <= int(record[name]) < len(classes):
            reason = f"{name} is {int(record[name])}, but there are {len(classes)} classes"
            raise UnreadableRecord(source.describe(index), reason)

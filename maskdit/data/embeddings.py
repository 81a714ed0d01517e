"""Text embeddings made beforehand: arrays beside a source, with one row for each of its records.

In a batch, and as streams of an encoded folder, they are named `text` and `decoder_text` `[B, T, D]`, `pooled` `[B, P]`
and `scalar/NAME` `[B]`; `null_text` and `null_pooled`, those of the empty text, are repeated for each row.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from maskdit.data.source import DataError, fields_only

TEXT, POOLED, DECODER_TEXT = "text", "pooled", "decoder_text"
NULL = {"null_text": TEXT, "null_pooled": POOLED}
"""Embeddings of the empty text, and whose place they take."""
SCALAR = "scalar/"
"""What the names of numbers begin with in a batch."""
_NAMES = "names"
_RANKS = {TEXT: 3, POOLED: 2, DECODER_TEXT: 3}
_ASKED = (
    "text embeddings are one array [records, tokens, channels], float16 or float32, or a .npz file of `text` [records, "
    "tokens, channels], `pooled` [records, channels], `null_text` [tokens, channels], `null_pooled` [channels], "
    "`decoder_text` [records, tokens, channels], `names` [records] of strings, and floats [records] of any other name"
)

Arrays = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype by name."""


class Texts(Protocol):
    """The embedded texts of a source's records."""

    @property
    def arrays(self) -> Arrays:
        """Of what `read` gives."""
        ...

    @property
    def null(self) -> dict[str, np.ndarray]:
        """`null_text` `[T, D]` and `null_pooled` `[P]`, the embeddings of the empty text, where there are any."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """What tells these texts from others, of JSON types."""
        ...

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Of record `index`: any of `text` `[T, D]`, `pooled` `[P]` and `scalar/NAME` `[]`."""
        ...

    def check(self, records: int) -> None:
        """Refuses another number of texts than the source has records."""
        ...


def is_text(name: str) -> bool:
    """Whether an array of a batch tells of texts."""
    return name in _RANKS or name in NULL or name.startswith(SCALAR)


def all_arrays(arrays: Arrays, null: Mapping[str, np.ndarray]) -> Arrays:
    """Shape and dtype of a record's arrays, together with those of the empty text."""
    return arrays | {name: (array.shape, str(array.dtype)) for name, array in null.items()}


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """The rows of a file.

    Attributes:
      path: a `.npy` file of `[N, T, D]` (T tokens of a text, D numbers each), read row by row; or a `.npz` file, held
        in memory, with one such array of any name, or with any of these: `text` `[N, T, D]`; `pooled` `[N, P]`, an
        embedding of the whole text; `null_text` `[T, D]` and `null_pooled` `[P]`, those of the empty text;
        `decoder_text` `[N, T, D]`, for a tokenizer whose decoder reads others; `names`, N strings for people; and float
        arrays `[N]`, numbers by name, such as the width of the image. Embeddings are float16 or float32. A local or
        mounted path.

    Raises:
      DataError: at first use, for a file that is missing or holds something else.
    """

    path: str

    __getstate__ = fields_only

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self._rows.values())))

    def read(self, index: int) -> dict[str, np.ndarray]:
        """See `Texts`."""
        return {name: np.asarray(rows[index]) for name, rows in self._rows.items()}

    @functools.cached_property
    def arrays(self) -> Arrays:
        """See `Texts`."""
        return {name: (rows.shape[1:], str(rows.dtype)) for name, rows in self._rows.items()}

    @functools.cached_property
    def null(self) -> dict[str, np.ndarray]:
        """See `Texts`."""
        return {name: self._file[name].astype(self._file[of].dtype) for name, of in NULL.items() if name in self._file}

    @property
    def names(self) -> list[str]:
        """What the rows are called; `text 0` and so on where the file does not say."""
        return [str(name) for name in self._file.get(_NAMES, [f"text {i}" for i in range(len(self))])]

    @property
    def description(self) -> dict[str, Any]:
        """The file's name and its size in bytes."""
        return {"file": os.path.basename(self.path), "bytes": os.path.getsize(self.path)}

    def check(self, records: int) -> None:
        """Refuses another number of rows than the source has records.

        Raises:
          DataError: with both.
        """
        if len(self) != records:
            raise DataError(
                f"'{self.path}' has {len(self)} rows of text and the source {records} records: give one row for each "
                "record, in the source's order"
            )

    @functools.cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """Arrays of a row for each record, named as in a batch."""
        named = {name: array for name, array in self._file.items() if name not in NULL and name != _NAMES}
        return {name: array for name, array in named.items() if name in _RANKS} | {
            f"{SCALAR}{name}": array.astype(np.float32) for name, array in named.items() if name not in _RANKS
        }

    @functools.cached_property
    def _file(self) -> dict[str, np.ndarray]:
        try:
            found = np.load(self.path, mmap_mode="r", allow_pickle=False)
            arrays = {name: found[name] for name in found.files} if hasattr(found, "files") else {TEXT: found}
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"'{self.path}' cannot be read as a .npy or .npz file of text embeddings: {error}"
            ) from error
        if len(arrays) == 1 and next(iter(arrays.values())).ndim == 3:
            arrays = {TEXT: next(iter(arrays.values()))}
        if fault := _fault(arrays):
            several = len(arrays) > 1
            each = [f"{array.dtype} {list(array.shape)}" + f" as {name}" * several for name, array in arrays.items()]
            found = (", ".join(each) or "nothing") + f": {fault}" * several
            raise DataError(f"'{self.path}' holds {found}; {_ASKED}")
        return arrays


def _fault(arrays: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the arrays of a file; empty where nothing is."""
    rows = {name: array for name, array in arrays.items() if name not in NULL}
    if not set(rows) - {_NAMES}:
        return "there is no text"
    for name, array in rows.items():
        if array.ndim != _RANKS.get(name, 1):
            return f"{name} has {array.ndim} axes"
        known = {"U": name == _NAMES, "f": name != _NAMES}.get(array.dtype.kind, False)
        if not known or (name in _RANKS and array.dtype not in (np.float16, np.float32)):
            return f"{name} is {array.dtype}"
    if len({len(array) for array in rows.values()}) > 1:
        return "the numbers of records differ"
    for name in set(arrays) & set(NULL):
        of, array = arrays.get(NULL[name]), arrays[name]
        if of is None or array.shape != of.shape[1:] or array.dtype not in (np.float16, np.float32):
            return f"{name} does not go with {NULL[name]}" + " that is not there" * (of is None)
        if not np.isfinite(array.astype(of.dtype)).all():
            return f"{name} is not finite"
    return ""

"""Text embeddings made beforehand: one array beside a source, with one row for each of its records."""

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from maskdit.data.source import DataError, fields_only


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Rows `[T, D]` by the number of a record: T tokens of a text, D numbers each.

    Attributes:
      path: a `.npy` file of `[N, T, D]`, read row by row, or a `.npz` file with one such array, held in memory; float16
        or float32. A local or mounted path.

    Raises:
      DataError: at first use, for a file that is missing or holds something else.
    """

    path: str

    __getstate__ = fields_only

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._array)

    def __getitem__(self, index: int) -> np.ndarray:
        """Row `index`, `[T, D]`."""
        return np.asarray(self._array[index])

    @property
    def shape(self) -> tuple[int, int]:
        """`(T, D)`."""
        return self._array.shape[1:]

    @property
    def dtype(self) -> str:
        """Of the numbers."""
        return str(self._array.dtype)

    @property
    def description(self) -> dict[str, Any]:
        """What tells this file from another: its name and its size in bytes."""
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
    def _array(self) -> np.ndarray:
        try:
            found = np.load(self.path, mmap_mode="r", allow_pickle=False)
            arrays = {name: found[name] for name in found.files} if hasattr(found, "files") else {"": found}
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"'{self.path}' cannot be read as a .npy or .npz file of text embeddings: {error}"
            ) from error
        array = next(iter(arrays.values())) if len(arrays) == 1 else None
        if array is None or array.ndim != 3 or array.dtype not in (np.float16, np.float32):
            shown = ", ".join(f"{array.dtype} {list(array.shape)}" for array in arrays.values()) or "nothing"
            raise DataError(
                f"'{self.path}' holds {shown}; text embeddings are one array [records, tokens, channels], float16 or "
                "float32"
            )
        return array

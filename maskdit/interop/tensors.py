"""What a file of published weights gives: nested containers whose tensors are read when they are asked for."""

import contextlib
import dataclasses
import math
import os
import stat
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

_MAX_RANK = 32
_MAX_ENTRIES = 1 << 48


class FileError(ValueError):
    """A file that cannot be read as weights; the message names it and says what to do."""


@runtime_checkable
class Tensor(Protocol):
    """A tensor in a file. A numpy array is one too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the entries; bfloat16 and float8 are those of ml_dtypes."""

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray:
        """Reads the tensor from its file now; nothing is kept."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
      tree: dicts, lists, tuples, numbers, strings and `Tensor`s, nested; also the placeholders of what was not built.
      placeholders: dotted names of the classes and functions that the file asks for and that were neither imported nor
        called, such as `argparse.Namespace`, in the order of the file.
    """

    tree: Any
    placeholders: tuple[str, ...] = ()


def first_bytes(path: str | os.PathLike[str], count: int = 512) -> bytes:
    """The beginning of a file, for telling its kind.

    Raises:
      FileError: for a file that is not there, cannot be read, is empty, or is what a failed download leaves behind: an
        HTML page or the pointer of git-lfs; and for what is no file but a pipe or a device.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # to open a pipe may wait for ever
            raise FileError(f"'{os.fspath(path)}' is a pipe or a device, not a file: save it as a file first")
        with open(path, "rb") as handle:
            head = handle.read(count)
    except FileNotFoundError as error:
        raise FileError(f"there is no file '{os.fspath(path)}': check the path") from error
    except OSError as error:
        raise FileError(f"'{os.fspath(path)}' cannot be read: {error.strerror or error}") from error
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise FileError(f"'{os.fspath(path)}' is empty: download it again")
    if head.startswith(b"version https://git-lfs"):
        raise FileError(
            f"'{os.fspath(path)}' is a pointer of git-lfs, not the weights: run `git lfs pull` beside it, or download "
            "the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        raise FileError(
            f"'{os.fspath(path)}' is a web page, not weights: the address may need a login or a click; download the "
            "file again"
        )
    return head


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives what may end the reading of any file, such as too little memory, as a `FileError` that names the file."""
    name = os.fspath(path)
    try:
        yield
    except OSError as error:
        raise FileError(f"'{error.filename or name}' cannot be read: {error.strerror or error}") from error
    except (MemoryError, RecursionError, OverflowError) as error:
        raise FileError(
            f"'{name}' needs more memory than there is, or larger numbers ({type(error).__name__}): it is damaged, or "
            "too much for this machine"
        ) from error


def check_shape(shape: Any) -> None:
    """Refuses what is no shape of a tensor that could stand in a file.

    Raises:
      ValueError: for what is no tuple of sizes from 0 up, has too many axes, or too many entries where the axes of
        size 0 are left out.
    """
    if type(shape) is not tuple or len(shape) > _MAX_RANK:
        raise ValueError(f"its shape is no tuple of up to {_MAX_RANK} sizes")
    if not all(type(length) is int and 0 <= length <= _MAX_ENTRIES for length in shape):  # before they are multiplied
        raise ValueError("its shape has a size that is no number from 0 up, or too large")
    if math.prod(length for length in shape if length) > _MAX_ENTRIES:
        raise ValueError(f"its shape {shape} is too large")


def printable(text: str) -> str:
    """A name out of a file as a message can hold it: one line, not long, nothing that a terminal obeys."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:120])

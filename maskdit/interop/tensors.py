"""What a file of published weights gives: nested containers whose tensors are read when they are asked for."""

import dataclasses
import os
from typing import Any, Protocol, runtime_checkable

import numpy as np


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
        HTML page or the pointer of git-lfs.
    """
    try:
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

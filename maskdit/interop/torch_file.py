"""Files of `torch.save`, read without torch and without running what their pickle asks for.

Two layouts: the zip archives of torch 1.6 and newer (`ARCHIVE/data.pkl` and a file for each storage) and the stream of
pickles and storages before that. Only the pickle is read at once; a tensor is read when it is asked for.
"""

import dataclasses
import math
import os
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from maskdit.interop.pickle_tree import finished
from maskdit.interop.tensors import Contents, FileError, check_shape, first_bytes, printable, reading
from maskdit.interop.torch_zip import MAGIC, Place, files_in
from maskdit.interop.unpickling import Build, Leaf, Stream, load, ordered_dict

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older layout
_PICKLE_PIECE = 1 << 26  # bytes; a string of a state dict has less than a hundred


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A class of torch's storages."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage(Leaf):
    """A storage, or the `count` entries from `offset` of one."""

    key: str
    dtype: np.dtype
    offset: int
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class _View(Leaf):
    """A tensor: entries of `dtype` in a storage; offset and strides count entries."""

    storage: _Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def made_of(self) -> tuple[Leaf, ...]:
        return (self.storage,)


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor in a torch file; `maskdit.interop.tensors.Tensor`.

    Attributes:
      path: the file.
      start: byte of the file where the first entry lies.
      shape: sizes of the axes.
      strides: entries from one to the next, for each axis.
      dtype: of the entries, in the byte order of this machine.
      swapped: whether the file has the other byte order.
    """

    path: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    swapped: bool = False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a tensor in a file cannot be had without a copy")
        with reading(self.path), open(self.path, "rb") as handle:
            flat = np.empty(_span(self.shape, self.strides), self.dtype)
            handle.seek(self.start)
            read = handle.readinto(flat.view(np.uint8).data)
        if read != flat.nbytes:
            raise FileError(f"'{self.path}' changed while it was read: the file became shorter")
        if self.swapped and self.dtype.itemsize > 1:
            width = self.dtype.itemsize // (2 if self.dtype.kind == "c" else 1)
            flat.view(f"u{width}").byteswap(inplace=True)
        steps = tuple(step * self.dtype.itemsize for step in self.strides)
        view: np.ndarray = np.ndarray(self.shape, self.dtype, flat.view(np.uint8).data, strides=steps)
        array = np.ascontiguousarray(view).reshape(self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


def read(path: str | os.PathLike[str]) -> Contents:
    """Reads what `torch.save` wrote; chosen by its content, whatever its name.

    Tensors are `FileTensor`s: their bytes are read at each use, and views are made contiguous. Parameters are tensors,
    ordered dicts are dicts, `torch.Size` is a tuple; requires_grad, hooks and `_metadata` are left out.

    Args:
      path: the file.

    Raises:
      FileError: for a file that is missing, cut off, damaged, encrypted, compressed or no torch file; for tensors
        outside their storage, or larger than the file; for tensors that only an object that is not built leads to.
    """
    name = os.fspath(path)
    head = first_bytes(path)
    with reading(name), open(name, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        return _read_zip(name, handle, size) if head.startswith(MAGIC) else _read_legacy(name, handle, size, head)


def _contents(unpickled: Any, path: str, size: int, places: Mapping[str, Place], swapped: bool) -> Contents:
    def finish(leaf: Any) -> FileTensor:
        return _tensor(leaf, path, size, places, swapped)

    return Contents(finished(unpickled, path, finish), unpickled.names)


def _tensor(leaf: _View | _Storage, path: str, size: int, places: Mapping[str, Place], swapped: bool) -> FileTensor:
    if isinstance(leaf, _Storage):
        leaf = _View(leaf, leaf.dtype, 0, (leaf.count,), (1,))
    storage = leaf.storage
    if storage.key not in places:
        raise ValueError(f"its storage {printable(storage.key)} is not in the file")
    place = places[storage.key]
    first, count = storage.offset * storage.dtype.itemsize, storage.count * storage.dtype.itemsize
    if first + count > place.size:
        raise ValueError(f"its storage should have {first + count} bytes and has {place.size}")
    width = leaf.dtype.itemsize
    if math.prod(leaf.shape) * width > size:
        raise ValueError(f"its shape {printable(str(leaf.shape))} is larger than the whole file")
    if (leaf.offset + _span(leaf.shape, leaf.strides)) * width > count:
        shape, strides = (printable(str(numbers)) for numbers in (leaf.shape, leaf.strides))
        raise ValueError(f"its shape {shape} with strides {strides} reaches beyond its storage")
    # A stride that no step takes may be any number; with 0 it fits numpy's.
    steps = zip(leaf.shape, leaf.strides, strict=True)
    taken = tuple(step if length > 1 and 0 not in leaf.shape else 0 for length, step in steps)
    return FileTensor(path, place.start + first + leaf.offset * width, leaf.shape, taken, leaf.dtype, swapped)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Entries from the first to the last of a view, both counted."""
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


# --- the zip layout ------------------------------------------------------------------------------------------------


def _read_zip(path: str, handle: BinaryIO, size: int) -> Contents:
    entries = files_in(path, handle, size)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        some = printable(", ".join(list(entries)[:3]))
        raise FileError(f"'{path}' is a zip archive with {len(pickles)} data.pkl ({some}): no file of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder", Place(0, 0))
    handle.seek(order.start)
    big = handle.read(min(order.size, 16)).strip() == b"big"
    place = entries[pickles[0]]
    handle.seek(place.start)
    unpickled = load(Stream(handle, place.size, path, _PICKLE_PIECE), _TABLE, _persistent({}))
    start = f"{root}data/"
    places = {name.removeprefix(start): place for name, place in entries.items() if name.startswith(start)}
    return _contents(unpickled, path, size, places, big != (sys.byteorder == "big"))


# --- the older layout ----------------------------------------------------------------------------------------------


def _read_legacy(path: str, handle: BinaryIO, size: int, head: bytes) -> Contents:
    if _MAGIC.to_bytes(10, "little") not in head[:32]:
        kind = "a tar archive" if head[257:262] == b"ustar" else "some other kind of file"
        raise FileError(f"'{path}' is no file of torch.save but {kind}: check what was downloaded")
    kinds: dict[str, tuple[np.dtype, int]] = {}

    def next_pickle() -> Any:
        return load(Stream(handle, size - handle.tell(), path, _PICKLE_PIECE), _TABLE, _persistent(kinds))

    if next_pickle().root != _MAGIC or next_pickle().root != 1001:
        raise FileError(f"'{path}' is no file of torch.save in a version that is known")
    next_pickle()  # the machine that wrote it; storages are little-endian on all
    unpickled = next_pickle()
    keys = next_pickle().root
    places: dict[str, Place] = {}
    for key in keys if isinstance(keys, list) else [None]:
        if type(key) is not str or key not in kinds or key in places:
            raise FileError(f"'{path}' has a damaged list of storages: download it again")
        dtype, count = kinds[key]
        header = handle.read(8)
        start = handle.tell()
        if len(header) < 8 or start + count * dtype.itemsize > size:
            raise FileError(f"'{path}' ends early, as half a download does: download it again")
        if struct.unpack("<q", header) != (count,):
            raise FileError(f"'{path}' has a storage of another size than its pickle says: download it again")
        places[key] = Place(start, count * dtype.itemsize)
        handle.seek(start + count * dtype.itemsize)
    return _contents(unpickled, path, size, places, sys.byteorder == "big")


# --- what the pickles may build ------------------------------------------------------------------------------------


def _persistent(kinds: dict[str, tuple[np.dtype, int]]) -> Any:
    """What stands for a persistent id; `kinds` takes dtype and number of entries of each storage."""

    def storage(kind: Any, key: Any, location: Any, count: Any, view: Any = None) -> _Storage:
        if not isinstance(kind, _Kind) or type(key) is not str:
            raise ValueError("a storage of unknown kind")
        _check(count)
        if kinds.setdefault(key, (kind.dtype, count)) != (kind.dtype, count):
            raise ValueError("a storage of two kinds")
        offset = 0
        if view is not None:  # of torch before 0.4: a part of a storage
            _, offset, length = view
            _check(offset, length)
            if offset + length > count:
                raise ValueError("a part beyond its storage")
            count = length
        return _Storage(key, kind.dtype, offset, count)

    def persistent(pid: Any) -> Any:
        if pid[:1] == ("storage",):
            return storage(*pid[1:])
        if pid[:1] == ("module",):
            return pid[1]  # a class, with its source code behind it
        raise ValueError("a reference to no storage")

    return persistent


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _View:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    return _view(storage, storage.dtype, offset, shape, strides)


def _rebuild_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> _View:
    if not isinstance(storage, _Storage) or not isinstance(dtype, np.dtype):
        raise ValueError("a tensor without a storage or a known dtype")
    return _view(storage, dtype, offset, shape, strides)


def _view(storage: _Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any) -> _View:
    check_shape(shape)
    if type(strides) is not tuple or len(shape) != len(strides):
        raise ValueError("a tensor whose shape and strides do not agree")
    _check(offset, *strides)
    return _View(storage, dtype, offset, shape, strides)


def _check(*numbers: Any) -> None:
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise ValueError("a size, stride or offset that is no number from 0 up")


def _parameter(data: Any, *rest: Any) -> Any:
    if not isinstance(data, _View):
        raise ValueError("a parameter without a tensor")
    return data


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    # Only what makes a tensor without calling anything itself, and reads no more than a few of its arguments.
    if not isinstance(function, Build) or function.make not in _REBUILDERS or type(args) is not tuple:
        raise ValueError("a tensor of a kind that is not known")
    return _parameter(function.make(*args))


_REBUILDERS = (_rebuild, _rebuild_v3, _parameter)


def _size(lengths: Any = ()) -> tuple[int, ...]:
    if type(lengths) not in (tuple, list):
        raise ValueError("a torch.Size of no numbers")
    check_shape(tuple(lengths))
    return tuple(lengths)


_DTYPES = {
    "float32": ("FloatStorage", np.float32),
    "float64": ("DoubleStorage", np.float64),
    "float16": ("HalfStorage", np.float16),
    "bfloat16": ("BFloat16Storage", ml_dtypes.bfloat16),
    "int64": ("LongStorage", np.int64),
    "int32": ("IntStorage", np.int32),
    "int16": ("ShortStorage", np.int16),
    "int8": ("CharStorage", np.int8),
    "uint8": ("ByteStorage", np.uint8),
    "bool": ("BoolStorage", np.bool_),
    "complex64": ("ComplexFloatStorage", np.complex64),
    "complex128": ("ComplexDoubleStorage", np.complex128),
    "uint16": ("", np.uint16),
    "uint32": ("", np.uint32),
    "uint64": ("", np.uint64),
    "float8_e4m3fn": ("", ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": ("", ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": ("", ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": ("", ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": ("", ml_dtypes.float8_e8m0fnu),
}
"""torch's dtypes: their class of storages, where there is one, and numpy's type."""

_TABLE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Build(ordered_dict),
    ("collections", "defaultdict"): Build(lambda *factory: {}),
    ("torch", "Size"): Build(_size),
    ("torch._utils", "_rebuild_tensor"): Build(_rebuild),
    ("torch._utils", "_rebuild_tensor_v2"): Build(_rebuild),
    ("torch._utils", "_rebuild_tensor_v3"): Build(_rebuild_v3),
    ("torch._utils", "_rebuild_parameter"): Build(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Build(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): Build(_from_type),
    ("torch.storage", "UntypedStorage"): _Kind(np.dtype(np.uint8)),
    ("torch", "UntypedStorage"): _Kind(np.dtype(np.uint8)),
    **{("torch", name): np.dtype(kind) for name, (_, kind) in _DTYPES.items()},
    **{("torch", storage): _Kind(np.dtype(kind)) for storage, kind in _DTYPES.values() if storage},
}

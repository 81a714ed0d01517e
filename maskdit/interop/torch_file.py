"""Files of `torch.save`, read without torch and without running what their pickle asks for.

Two layouts: the zip archives of torch 1.6 and newer (`ARCHIVE/data.pkl` and a file for each storage) and the stream of
pickles and storages before that. Only the pickle is read at once; a tensor is read when it is asked for.
"""

import dataclasses
import math
import os
import struct
import sys
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from maskdit.interop.tensors import Contents, FileError, first_bytes
from maskdit.interop.unpickling import Build, Leaf, Stream, finished, load, ordered_dict, printable

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older layout
_ZIP = b"PK\3\4"
_PICKLE_PIECE = 1 << 26  # bytes; a string of a state dict has less than a hundred
_MAX_RANK = 32
_MAX_ENTRIES = 1 << 48  # of a tensor without entries, the axes that are not 0


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
class _Place:
    """Where the bytes of a storage lie in the file."""

    start: int
    size: int


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
        flat = np.empty(_span(self.shape, self.strides), self.dtype)
        try:
            with open(self.path, "rb") as handle:
                handle.seek(self.start)
                read = handle.readinto(flat.view(np.uint8).data)
        except OSError as error:
            raise FileError(f"'{self.path}' cannot be read: {error.strerror or error}") from error
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
    try:
        with open(name, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            return _read_zip(name, handle, size) if head.startswith(_ZIP) else _read_legacy(name, handle, size, head)
    except OSError as error:
        raise FileError(f"'{name}' cannot be read: {error.strerror or error}") from error


def _contents(unpickled: Any, path: str, size: int, places: Mapping[str, _Place], swapped: bool) -> Contents:
    def finish(leaf: Any, place: str) -> FileTensor:
        try:
            return _tensor(leaf, path, size, places, swapped)
        except ValueError as error:
            raise FileError(f"'{path}' holds a damaged tensor at {place}: {error}") from error

    return Contents(finished(unpickled, path, finish), unpickled.names)


def _tensor(leaf: _View | _Storage, path: str, size: int, places: Mapping[str, _Place], swapped: bool) -> FileTensor:
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
        raise ValueError(f"its shape {leaf.shape} is larger than the whole file")
    if (leaf.offset + _span(leaf.shape, leaf.strides)) * width > count:
        raise ValueError(f"its shape {leaf.shape} with strides {leaf.strides} reaches beyond its storage")
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
    entries = _entries(path, handle, size)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        some = printable(", ".join(list(entries)[:3]))
        raise FileError(f"'{path}' is a zip archive with {len(pickles)} data.pkl ({some}): no file of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder", _Place(0, 0))
    handle.seek(order.start)
    big = handle.read(min(order.size, 16)).strip() == b"big"
    place = entries[pickles[0]]
    handle.seek(place.start)
    unpickled = load(Stream(handle, place.size, path, _PICKLE_PIECE), _TABLE, _persistent({}))
    start = f"{root}data/"
    places = {name.removeprefix(start): place for name, place in entries.items() if name.startswith(start)}
    return _contents(unpickled, path, size, places, big != (sys.byteorder == "big"))


def _entries(path: str, handle: BinaryIO, size: int) -> dict[str, _Place]:
    """Name -> place of all files in a zip archive."""
    try:
        with zipfile.ZipFile(handle) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:  # its directory is at the end
        raise FileError(f"'{path}' ends early or is damaged, as half a download is: download it again") from error
    if any(info.filename.split("/")[-1] == "constants.pkl" for info in infos):
        raise FileError(
            f"'{path}' is a TorchScript archive, a program with its weights: save model.state_dict() with torch.save"
        )
    entries: dict[str, _Place] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = printable(info.filename)
        if info.flag_bits & 1:
            raise FileError(f"'{path}' is encrypted ({name}): decrypt it first")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise FileError(f"'{path}' is compressed ({name}), which torch's files are not: unpack it first")
        if info.orig_filename in entries:
            raise FileError(f"'{path}' holds two files of the name {name}: it is damaged")
        handle.seek(max(0, info.header_offset))
        local = handle.read(30)
        if len(local) < 30 or not local.startswith(_ZIP) or info.header_offset < end:
            raise FileError(f"'{path}' is damaged at {name}: download it again")
        start = info.header_offset + 30 + sum(struct.unpack("<2H", local[26:]))
        end = start + info.file_size
        if end > size:
            raise FileError(f"'{path}' is damaged at {name}: download it again")
        entries[info.orig_filename] = _Place(start, info.file_size)
    return entries


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
    places: dict[str, _Place] = {}
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
        places[key] = _Place(start, count * dtype.itemsize)
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
        if type(pid) is tuple and pid[:1] == ("storage",):
            return storage(*pid[1:])
        if type(pid) is tuple and pid[:1] == ("module",):
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
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or len(shape) > _MAX_RANK:
        raise ValueError("a tensor whose shape and strides do not agree")
    _check(offset, *shape, *strides)
    if math.prod(length for length in shape if length) > _MAX_ENTRIES:
        raise ValueError("a tensor of a shape too large")
    return _View(storage, dtype, offset, shape, strides)


def _check(*numbers: Any) -> None:
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise ValueError("a size, stride or offset that is no number from 0 up")


def _parameter(data: Any, *rest: Any) -> Any:
    if not isinstance(data, _View):
        raise ValueError("a parameter without a tensor")
    return data


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    if not isinstance(function, Build) or type(args) is not tuple:
        raise ValueError("a tensor of a kind that is not known")
    return _parameter(function.make(*args))


def _size(lengths: Any = ()) -> tuple[int, ...]:
    if type(lengths) not in (tuple, list):
        raise ValueError("a torch.Size of no numbers")
    _check(*lengths)
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

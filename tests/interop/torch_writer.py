"""Files as `torch.save` writes them, without torch: numpy arrays stand for tensors.

What is not said here is pickled as it is: an `argparse.Namespace` or a numpy scalar goes into the file as its global.
"""

import dataclasses
import functools
import io
import os
import pathlib
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, BinaryIO, ClassVar

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}
"""numpy's name of a dtype -> torch's class of storages."""
UNTYPED = {"uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}
"""dtypes without such a class: torch writes bytes and the dtype beside them (`_rebuild_tensor_v3`)."""
MAGIC = 0x1950A86A20F9469CFC6C
_SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
    """A class or function that the pickle names and does not hold."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What calling a global gives, with its state where there is one (the opcodes REDUCE and BUILD)."""

    function: Any
    args: tuple
    state: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A tensor over the storage of `base`, counted in entries. Views of one array, and the array, share a storage."""

    base: np.ndarray
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """A `torch.nn.Parameter`."""

    data: np.ndarray | View


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    base: np.ndarray


def state_dict(tensors: dict[str, Any]) -> OrderedDict:
    """The state dict of a module: ordered, with the attribute `_metadata` that modules give theirs."""
    made = OrderedDict(tensors)
    made._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return made


named = functools.cache(Global)
"""The global of a name; the same object for the same name, so that a pickle writes it once."""


class _Pickler(pickle._Pickler):
    """Writes globals by name alone and arrays as torch writes tensors; keeps storages in the order of their keys."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO, legacy: bool):
        super().__init__(file, protocol=2)
        self.storages: dict[int, tuple[str, np.ndarray]] = {}
        self._legacy = legacy

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        key, base = self.storages.setdefault(id(obj.base), (str(len(self.storages)), obj.base))
        untyped = base.dtype.name in UNTYPED
        kind = named("torch.storage", "UntypedStorage") if untyped else named("torch", STORAGES[base.dtype.name])
        numel = base.nbytes if untyped else base.size
        return ("storage", kind, key, "cpu", numel) + ((None,) if self._legacy else ())

    def _save_global(self, obj: Global) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    def _reduce(self, obj: Any, function: Any, args: tuple, state: Any = None) -> None:
        self.save(function)
        self.save(args)
        self.write(pickle.REDUCE)
        self.memoize(obj)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)

    def _save_call(self, obj: Call) -> None:
        self._reduce(obj, obj.function, obj.args, obj.state)

    def _save_array(self, obj: np.ndarray) -> None:
        stride = tuple(int(np.prod(obj.shape[axis + 1 :])) for axis in range(obj.ndim))
        self._save_tensor(obj, obj, 0, obj.shape, stride)

    def _save_view(self, obj: View) -> None:
        self._save_tensor(obj, obj.base, obj.offset, obj.size, obj.stride)

    def _save_tensor(self, obj: Any, base: np.ndarray, offset: int, size: tuple, stride: tuple) -> None:
        args: tuple = (_Storage(base), offset, size, stride, False, OrderedDict())
        if base.dtype.name in UNTYPED:
            args += (named("torch", base.dtype.name),)
            self._reduce(obj, named("torch._utils", "_rebuild_tensor_v3"), args)
        else:
            self._reduce(obj, named("torch._utils", "_rebuild_tensor_v2"), args)

    def _save_parameter(self, obj: Parameter) -> None:
        self._reduce(obj, named("torch._utils", "_rebuild_parameter"), (obj.data, True, OrderedDict()))

    dispatch[Global] = _save_global
    dispatch[Call] = _save_call
    dispatch[np.ndarray] = _save_array
    dispatch[View] = _save_view
    dispatch[Parameter] = _save_parameter


def pickled(tree: Any, legacy: bool = False) -> tuple[bytes, list[tuple[str, np.ndarray]]]:
    """The pickle of a tree, and its storages with their keys."""
    file = io.BytesIO()
    pickler = _Pickler(file, legacy)
    pickler.dump(tree)
    return file.getvalue(), list(pickler.storages.values())


def write_zip(path: str | os.PathLike[str], tree: Any, byteorder: str = "little") -> None:
    """Writes the layout of torch 1.6 and newer; the archive has the name of the file."""
    data, storages = pickled(tree)
    root = pathlib.Path(path).stem
    files: dict[str, Any] = {f"{root}/data.pkl": data, f"{root}/byteorder": byteorder.encode()}
    files |= {f"{root}/data/{key}": _raw(base, byteorder) for key, base in storages}
    write_archive(path, {**files, f"{root}/version": b"3\n"})


def write_archive(path: str | os.PathLike[str], files: dict[str, Any]) -> None:
    """Writes a zip as torch does: stored, data aligned to 64 bytes by an extra field, sizes behind the data."""
    with open(path, "wb") as out:
        entries = [_write_entry(out, name.encode(), data) for name, data in files.items()]
        start = out.tell()
        for name, size, checksum, place in entries:
            central = (b"PK\1\2", 0, 0, 0x808, 0, 0, 0, checksum, size, size, len(name), 0, 0, 0, 0, 0, place)
            out.write(struct.pack("<4s6H3I5H2I", *central) + name)
        directory = (b"PK\5\6", 0, 0, len(entries), len(entries), out.tell() - start, start, 0)
        out.write(struct.pack("<4s4H2IH", *directory))


def _write_entry(out: BinaryIO, name: bytes, data: Any) -> tuple[bytes, int, int, int]:
    place = out.tell()
    padding = -(place + 30 + len(name) + 4) % 64
    out.write(struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), padding + 4) + name)
    out.write(struct.pack("<2sH", b"FB", padding) + b"Z" * padding)
    out.write(data)
    size, checksum = len(data), zlib.crc32(data)
    out.write(struct.pack("<4s3I", b"PK\7\10", checksum, size, size))
    return name, size, checksum, place


def write_legacy(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes the layout before torch 1.6: pickles one after the other, then the storages."""
    data, storages = pickled(tree, legacy=True)
    with open(path, "wb") as out:
        out.writelines(_plain((MAGIC, 1001, _SYSTEM)))
        out.write(data)
        out.writelines(_plain(([key for key, _ in storages],)))
        for _, base in storages:
            out.write(struct.pack("<q", base.nbytes if base.dtype.name in UNTYPED else base.size))
            out.write(_raw(base, "little"))


def _plain(values: Iterable[Any]) -> list[bytes]:
    return [pickle.dumps(value, protocol=2) for value in values]


def _raw(base: np.ndarray, byteorder: str) -> memoryview:
    flat = np.ascontiguousarray(base).reshape(-1)
    width = flat.itemsize // 2 if flat.dtype.kind == "c" else flat.itemsize
    if byteorder == "big" and width > 1:
        flat = flat.view(f"u{width}").byteswap()
    return memoryview(flat.view(np.uint8))

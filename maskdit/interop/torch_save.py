"""State dicts for `torch.load`, written without torch in the layout of torch 1.6 and newer.

A zip archive without compression: `data.pkl`, the ordered dict of tensors; `data/0`, `data/1` and so on, the storage of
each; `byteorder`, `version` and `.data/serialization_id`. The pickle has protocol 2 and names only what
`torch.load(weights_only=True)` allows.
"""

import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from maskdit.interop.tensors import Tensor

_ROOT = "archive"
_ALIGNMENT = 64  # bytes: where data begin, so that the file can be mapped into memory
_ZIP64_LIMIT = 2_000_000_000  # bytes of a storage from which zipfile is told beforehand that 32 bits may not do
_ZIP64_EXTRA = 20  # bytes that such an entry's header has more
_LOCAL_HEADER, _EXTRA_HEADER = 30, 4  # bytes
_STORAGES = {
    np.dtype(kind): f"{name}Storage"
    for kind, name in (
        (np.float32, "Float"),
        (np.float64, "Double"),
        (np.float16, "Half"),
        (ml_dtypes.bfloat16, "BFloat16"),
        (np.int64, "Long"),
        (np.int32, "Int"),
        (np.int16, "Short"),
        (np.int8, "Char"),
        (np.uint8, "Byte"),
        (np.bool_, "Bool"),
        (np.complex64, "ComplexFloat"),
        (np.complex128, "ComplexDouble"),
    )
}


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Writes a state dict of contiguous CPU tensors.

    Tensors are written one after the other; of handles, and of arrays that are not contiguous, one at a time stands in
    memory. Each gets a storage of its own.

    Args:
      path: the file; one that is there is overwritten. It is incomplete where this raises.
      tensors: name -> array, or a handle that reads on `numpy.asarray`.

    Raises:
      ValueError: for a dtype that torch has no typed storage of, before anything is written.
      OSError: where the file cannot be written.
    """
    for name, tensor in tensors.items():
        if _native(tensor.dtype) not in _STORAGES:
            known = ", ".join(str(dtype) for dtype in _STORAGES)
            raise ValueError(f"{name} has the dtype {tensor.dtype}, which torch stores in no such file: use {known}")
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        _entry(archive, file.tell(), "data.pkl", b"".join(_pickled(tensors)))
        _entry(archive, file.tell(), "byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            array = np.asarray(tensor)
            array = np.ascontiguousarray(array, _native(array.dtype).newbyteorder("<"))
            _entry(archive, file.tell(), f"data/{key}", array.reshape(-1).view(np.uint8).data)
        _entry(archive, file.tell(), "version", b"3\n")
        _entry(archive, file.tell(), ".data/serialization_id", _serialization_id(archive))


def _native(dtype: np.dtype) -> np.dtype:
    return dtype.newbyteorder("=")


def _entry(archive: zipfile.ZipFile, place: int, name: str, data: bytes | memoryview) -> None:
    """Appends a file at a place whose data begin at a multiple of 64 bytes: a field before them fills the gap."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")
    info.file_size = len(data)
    large = len(data) >= _ZIP64_LIMIT
    start = place + _LOCAL_HEADER + len(info.filename) + _EXTRA_HEADER + large * _ZIP64_EXTRA
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as handle:
        handle.write(data)


def _serialization_id(archive: zipfile.ZipFile) -> bytes:
    """Forty digits that are others for other names or other data; torch does not check them."""
    entries = archive.infolist()
    names = zlib.crc32("\n".join(entry.filename for entry in entries).encode())
    data = zlib.crc32(b"".join(struct.pack("<I", entry.CRC) for entry in entries))
    return f"{names:020}{data:020}".encode()


# --- the pickle ----------------------------------------------------------------------------------------------------


def _pickled(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """The pieces of the pickle of an ordered dict."""
    yield pickle.PROTO + b"\2"
    yield _ORDERED_DICT
    yield pickle.MARK
    for key, (name, tensor) in enumerate(tensors.items()):
        yield _text(name)
        yield _tensor(str(key), tuple(tensor.shape), _STORAGES[_native(tensor.dtype)])
    yield pickle.SETITEMS + pickle.STOP


def _tensor(key: str, shape: tuple[int, ...], storage: str) -> bytes:
    """A call of torch's `_rebuild_tensor_v2`; offset and strides count entries."""
    strides = tuple(math.prod(max(length, 1) for length in shape[axis + 1 :]) for axis in range(len(shape)))
    count = math.prod(shape)
    place = pickle.MARK + _text("storage") + _global("torch", storage) + _text(key) + _text("cpu") + _int(count)
    arguments = (
        place + pickle.TUPLE + pickle.BINPERSID,
        _int(0),
        _ints(shape),
        _ints(strides),
        pickle.NEWFALSE,  # no gradient is wanted
        _ORDERED_DICT,  # hooks
    )
    call = pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE
    return _global("torch._utils", "_rebuild_tensor_v2") + call


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _int(number: int) -> bytes:
    if number < 1 << 31:
        return pickle.BININT + struct.pack("<i", number)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", number)


def _ints(numbers: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(_int, numbers)) + pickle.TUPLE


_ORDERED_DICT = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE

"""A state dict from a file of any kind that weights are published in, read lazily.

The kind is told by the content, not by the name: safetensors, a torch archive, a pickle of numpy arrays, the index of a
model that is cut into shards, or the `model.json` of TensorFlow.js. Tensors are read from the file each time that they
are asked for; nothing is kept.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from maskdit.interop import numpy_file, tfjs, torch_file
from maskdit.interop.tensors import FileError, Tensor, check_shape, first_bytes, printable, reading

WITHIN = ("ema", "model", "state_dict")
"""Entries of a training checkpoint that hold weights, the best ones first."""

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = ".index.json"
_SHARD = re.compile(r"-\d+-of-\d+$")
_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number that such a file begins with, as a pickle writes it
_HEADER_LIMIT = 100_000_000  # bytes, of the safetensors format
_JSON_LIMIT = 1 << 25  # bytes; the index of a very large model has ten million, and memory may need 30 times as many
_NAME_LIMIT = 1000  # letters
_DEPTH_LIMIT = 64
_ENTRY_LIMIT = 1_000_000
_TENSOR_LIMIT = 100_000
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


@dataclasses.dataclass(frozen=True)
class State:
    """The tensors of a file.

    Attributes:
      tensors: published name -> tensor; entries of nested dicts are joined by `.`.
      path: the file, or the index of its shards.
      placeholders: dotted names of globals that a pickle asks for and that were not built.
      within: the entry of the file that the tensors stand in; empty for the top level.
    """

    tensors: dict[str, Tensor]
    path: str
    placeholders: tuple[str, ...] = ()
    within: str = ""


@dataclasses.dataclass(frozen=True)
class _SafeTensor:
    """A tensor of a safetensors file, `start` bytes from its beginning."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{self.name} is read from a file, which makes a copy")
        size = self.dtype.itemsize * math.prod(self.shape)
        with reading(self.path):  # not through a memory map, whose pages would stand in memory beside the copy
            data = np.fromfile(self.path, np.uint8, size, offset=self.start)
        if data.size != size:
            raise FileError(f"{self.path}: {self.name} ends early; the file changed since it was opened")
        array = data.view(self.dtype).reshape(self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


def open_state(path: str | os.PathLike[str], within: Sequence[str] = WITHIN) -> State:
    """Opens a file of weights, whatever its kind; no tensor is read yet.

    Args:
      path: the file, the index of a model in shards (which lie beside it), or a folder that holds one of these.
      within: entries of a training checkpoint that may hold the weights. The first that is there and has tensors is
        taken, else the top level.

    Raises:
      FileError: a path that is missing or may not be read, a file that is damaged or holds no tensors, and a folder
        that holds several candidates.
    """
    path = pathlib.Path(path)
    with reading(path):
        if path.is_dir():
            path = _in_folder(path)
        return _open(path, within)


def shard_files(path: str | os.PathLike[str]) -> dict[str, str]:
    """The file name of the shard that holds each tensor, from the `weight_map` of an index.

    Raises:
      FileError: a file that is no such index or larger than one, and a shard that would not lie beside it.
    """
    with open(path, "rb") as file:
        text = file.read(_JSON_LIMIT + 1)
    if len(text) > _JSON_LIMIT:
        raise FileError(
            f"{path} begins as an index of shards does, but an index has at most {_JSON_LIMIT} bytes: check what was "
            "downloaded"
        )
    try:
        places = json.loads(text)["weight_map"]
        if not places or not all(isinstance(name, str) for name in places.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(
            f"{path} is no index of a model in shards: it should be JSON with a 'weight_map' of tensors and files"
        ) from error
    _check_names(path, places)
    _check_beside(path, places.values())
    return places


def _check_beside(path: str | os.PathLike[str], shards: Iterable[str]) -> None:
    """Refuses names of shards that lead elsewhere."""
    for name in set(shards):
        if name in ("", ".", "..") or re.search(r"[/\\:\0]", name) or not name.isprintable():
            raise FileError(
                f"{path} names the shard '{printable(name)}', which does not lie beside it; this is refused"
            )


def weight_files(names: Iterable[str]) -> list[str]:
    """Those of `names` that hold a whole model by their suffix, sorted.

    Shards that have an index are left out, and so is the `.bin` (or the index of such) beside a `.safetensors` of the
    same name.
    """
    names = sorted(name for name in names if name.endswith((*_SUFFIXES, _INDEX)))
    parts = {name: _stem_and_rank(name) for name in names}
    indexed = {parts[name][0] for name in names if name.endswith(_INDEX)}
    names = [name for name in names if not (_SHARD.search(parts[name][0]) and _unsharded(parts[name][0]) in indexed)]
    best: dict[str, int] = {}
    for stem, rank in (parts[name] for name in names):
        best[stem] = min(rank, best.get(stem, rank))
    return [name for name in names if parts[name][1] == best[parts[name][0]]]


def _stem_and_rank(name: str) -> tuple[str, int]:
    """The name without its suffix, and the place of the suffix among those that are preferred."""
    suffixes = (".safetensors", ".safetensors" + _INDEX, ".bin", ".bin" + _INDEX, _INDEX)
    for rank, suffix in enumerate(suffixes):
        if name.endswith(suffix):
            return name.removesuffix(suffix), rank
    return name, 0


def _unsharded(stem: str) -> str:
    return _SHARD.sub("", stem)


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
    if tfjs.is_model(folder / tfjs.MODEL):  # whose shards have the suffix of torch files
        return folder / tfjs.MODEL
    entries = sorted(folder.iterdir())
    names = weight_files(entry.name for entry in entries if entry.is_file())
    if len(names) == 1:
        return folder / names[0]
    if names:
        raise FileError(
            f"{folder} holds several files of weights: {', '.join(map(printable, names))}; name one of them"
        )
    inner = ", ".join(printable(entry.name) for entry in entries if entry.is_dir())
    hint = f"; name one of its folders instead: {inner}" if inner else ""
    raise FileError(f"{folder} holds no file of weights ({', '.join((*_SUFFIXES, _INDEX))}){hint}")


def _open(path: pathlib.Path, within: Sequence[str]) -> State:
    head = first_bytes(path)
    if head.startswith(b"PK") or _LEGACY_TORCH in head[:32]:
        contents = torch_file.read(path)
    elif _is_safetensors(head):
        return State(_safetensors(path), str(path))
    elif head.startswith(b"\x80"):
        contents = numpy_file.read(path)
    elif head.lstrip().startswith(b"{"):
        return _of_tfjs(path) if tfjs.is_model(path) else _sharded(path)
    else:
        raise FileError(
            f"{path} is of no known kind: safetensors, a torch file (.pt, .pth, .bin), a pickle of numpy arrays, an "
            "index of shards or the model.json of TensorFlow.js are read"
        )
    chosen, tree = _chosen(path, contents.tree, within)
    tensors = _flat(path, tree)
    if not tensors:
        raise FileError(f"{path} holds no tensors")
    return State(tensors, str(path), contents.placeholders, chosen)


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and 2 <= struct.unpack("<Q", head[:8])[0] <= _HEADER_LIMIT and head[8:9] == b"{"


def _check_names(path: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Refuses names that a message or a list could not show, whatever kind of file they stand in."""
    for name in names:
        if len(name) > _NAME_LIMIT or not name.isprintable():
            raise FileError(
                f"{path} holds a tensor of the name '{printable(name)}', which is not a line of up to {_NAME_LIMIT} "
                "printable letters: save it again with plain names"
            )


def _safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    size = _header_size(path)
    if size > _JSON_LIMIT:
        raise FileError(f"{path} has a header of {size} bytes, and {_JSON_LIMIT} are the most that is read")
    try:
        with safe_open(path, framework="numpy"):  # checks that the header is sound and covers the file
            pass
        header = _header(path)
    except (SafetensorError, ValueError, RecursionError) as error:
        damage = _damage(path) or f"{path} is a damaged safetensors file: {printable(str(error))}; fetch it again"
        raise FileError(damage) from error
    _check_names(path, header)
    tensors: dict[str, Tensor] = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise FileError(f"{path}: {name} has the dtype {printable(entry['dtype'])}; {known} are read")
        place, shape = 8 + size + entry["data_offsets"][0], tuple(entry["shape"])
        try:
            check_shape(shape)
        except ValueError as error:
            raise FileError(f"{path}: {name} cannot be read: {error}") from error
        tensors[name] = _SafeTensor(str(path), name, shape, _DTYPES[entry["dtype"]], place)
    if not tensors:
        raise FileError(f"{path} holds no tensors")
    return tensors


def _header_size(path: pathlib.Path) -> int:
    """Bytes of the header of a safetensors file, behind the eight that tell them."""
    return struct.unpack("<Q", first_bytes(path, 8))[0]


def _header(path: pathlib.Path) -> dict[str, Any]:
    """The entries of a safetensors file."""
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(_header_size(path)))
    header.pop("__metadata__", None)
    return header


def _damage(path: pathlib.Path) -> str:
    """What is wrong with a file that is shorter than it says; empty where it is not."""
    size = path.stat().st_size
    expected = 8 + _header_size(path)
    broken = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
    with contextlib.suppress(*broken):  # a header that is cut, or no header
        expected += max((entry["data_offsets"][1] for entry in _header(path).values()), default=0)
    if size >= expected:
        return ""
    return f"{path} ends after {size} bytes of at least {expected}, such as half a download; fetch it again"


def _sharded(path: pathlib.Path) -> State:
    places = shard_files(path)
    shards = sorted(set(places.values()))
    _check_there(path, shards)
    opened = {name: _shard(path.parent / name) for name in shards}
    lacking = [name for name, shard in places.items() if name not in opened[shard].tensors]
    if lacking:
        told = ", ".join(f"{name} in {places[name]}" for name in lacking[:5])
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise FileError(
            f"{path} names tensors that the shards lack: {told}{more}; index and shards are of two versions"
        )
    tensors = {name: opened[shard].tensors[name] for name, shard in places.items()}
    placeholders = sorted({name for state in opened.values() for name in state.placeholders})
    return State(tensors, str(path), tuple(placeholders))


def _check_there(path: pathlib.Path, shards: Iterable[str]) -> None:
    missing = [name for name in shards if not (path.parent / name).is_file()]
    if missing:
        raise FileError(f"{path} needs these shards, which do not lie beside it: {', '.join(missing)}; fetch them too")


def _of_tfjs(path: pathlib.Path) -> State:
    manifest = tfjs.groups(path)
    shards = [name for group in manifest for name in group.paths]
    _check_beside(path, shards)
    _check_there(path, shards)
    tensors = tfjs.tensors(path, manifest)
    _check_names(path, tensors)
    return State(tensors, str(path))


def _shard(path: pathlib.Path) -> State:
    if first_bytes(path).lstrip().startswith(b"{"):
        raise FileError(f"{path} is an index itself, not a shard")
    return _open(path, ())


def _chosen(path: pathlib.Path, tree: Any, within: Sequence[str]) -> tuple[str, Any]:
    if isinstance(tree, Mapping):
        for name in within:
            if isinstance(tree.get(name), Mapping) and next(_tensors(path, tree[name]), None) is not None:
                return name, tree[name]
    return "", tree


def _flat(path: pathlib.Path, tree: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in _tensors(path, tree):
        _check_names(path, (name,))
        if name in tensors:
            raise FileError(f"{path} holds two tensors of the name {name}")
        tensors[name] = tensor
        if len(tensors) > _TENSOR_LIMIT:
            raise FileError(f"{path} holds more than {_TENSOR_LIMIT} tensors, which no model has")
    return tensors


def _tensors(path: pathlib.Path, tree: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of dicts, lists and tuples with their names; what is no tensor is left out."""
    names: list[str] = []
    seen = 0

    def visit(value: Any) -> Iterator[tuple[str, Tensor]]:
        nonlocal seen
        seen += 1
        if len(names) > _DEPTH_LIMIT or seen > _ENTRY_LIMIT:  # a tree can hold itself
            raise FileError(f"{path} is nested without end, which no file of weights is")
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Mapping):
            items = value.items()
        elif isinstance(value, list | tuple):
            items = enumerate(value)
        elif isinstance(value, Tensor) and not isinstance(value, np.generic):
            yield ".".join(names), value
        for key, inner in items:
            names.append(str(key))
            yield from visit(inner)
            names.pop()

    yield from visit(tree)

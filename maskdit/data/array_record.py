"""Images and labels in ArrayRecord shards: the form for data sets of your own, too large for a folder of files."""

import dataclasses
import functools
import glob
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from PIL import Image

from maskdit.data.source import RESERVED, DataError, Record, UnreadableRecord, fields_only
from maskdit.data.transforms import decode

SUFFIX = ".array_record"
INDEX = "labels.json"


@dataclasses.dataclass(frozen=True)
class ArrayRecord:
    """Records written by `write_array_record`.

    The format: `NAME-00000-of-00004.array_record` shards, each record a msgpack map of `image` (bytes of a PNG, JPEG or
    WebP file, or of a raw uint8 array whose shape is then in `shape`) and a class number for each label; beside them
    `labels.json`, `{"records": N, "labels": {label name: [class names]}}`. Numbers follow the sorted shards.

    Attributes:
      path: a folder of shards, or a pattern such as `DIR/train-*.array_record`. A local or mounted path: ArrayRecord
        itself reads no gs:// files.
      labels: the labels wanted; None for all that there are, none, `()`, for unconditional training.

    Raises:
      DataError: at first use, where there are no shards, some are missing or unfinished, or a label is unknown.
    """

    path: str
    labels: tuple[str, ...] | None = None

    __getstate__ = fields_only

    def __len__(self) -> int:
        """Number of records."""
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Record `index`: `image` uint8 `[H, W, 3]` and a class number for each label."""
        name = self.describe(index)
        shards, vocabulary = self._records, self.vocabulary  # outside of try: their errors concern all records
        try:
            fields = msgpack.unpackb(shards[index])
            labels = {label: int(fields[label]) for label in vocabulary}
            if "shape" not in fields:
                return {"image": decode(fields["image"], name), **labels}
            return {"image": np.frombuffer(fields["image"], np.uint8).reshape(fields["shape"]), **labels}
        except KeyError as error:
            raise UnreadableRecord(name, f"no {error} in the record") from error
        except (OSError, ValueError, RuntimeError, TypeError) as error:  # damaged shard, or not what was written
            raise UnreadableRecord(name, str(error).split("\n")[0]) from error

    @functools.cached_property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Label name -> class names, for the labels asked for."""
        there = self._index["labels"]
        wanted = tuple(there) if self.labels is None else self.labels
        for name in wanted:
            if name not in there:
                raise DataError(f"'{self._folder}' has no label '{name}'; it has {', '.join(there) or 'none'}")
        return {name: tuple(there[name]) for name in wanted}

    def describe(self, index: int) -> str:
        """Path and number."""
        return f"{self.path}, record {index}"

    @functools.cached_property
    def _shards(self) -> list[str]:
        _local(self.path)
        folder = epath.Path(self.path)
        pattern = f"{glob.escape(self.path)}/*{SUFFIX}" if folder.is_dir() else self.path
        shards = sorted(glob.glob(pattern))
        if not shards:
            raise DataError(
                f"no {SUFFIX} files match '{pattern}': set path to a folder or pattern of shards, as written by "
                "maskdit.data.array_record.write_array_record"
            )
        return shards

    @property
    def _folder(self) -> epath.Path:
        return epath.Path(self._shards[0]).parent

    @functools.cached_property
    def _index(self) -> dict[str, Any]:
        path = self._folder / INDEX
        try:
            index = json.loads(path.read_text())
            return {"labels": dict(index["labels"]), "records": int(index["records"])}
        except FileNotFoundError as error:
            raise DataError(
                f"there is no {INDEX} beside the shards in '{self._folder}': it is written last, so the writing was "
                "interrupted; write the data again"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"'{path}' is not an index of labels and records ({error!r}): write the data again"
            ) from error

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        try:
            records = ArrayRecordDataSource(self._shards)
            count = len(records)
        except (RuntimeError, OSError) as error:
            raise DataError(f"a shard in '{self._folder}' cannot be opened ({error}): write the data again") from error
        expected = self._index["records"]
        if epath.Path(self.path).is_dir() and count != expected:
            raise DataError(
                f"the {len(self._shards)} shards in '{self._folder}' hold {count} records, {INDEX} says {expected}: "
                "some shards are missing, copy them again"
            )
        return records


def write_array_record(
    records: Iterable[Mapping[str, Any]],
    path: str,
    shards: int = 1,
    labels: Mapping[str, Sequence[str]] | None = None,
    encoding: str = "png",
) -> int:
    """Writes records into shards that `ArrayRecord` reads; one split to a folder.

    Args:
      records: maps of `image` and labels. `image` is a uint8 array `[H, W, 3]`, or the bytes of a PNG, JPEG or WebP
        file, stored as they are. A label is a class number or a class name.
      path: a folder without shards; made where there is none.
      shards: number of files; record i goes to shard i modulo `shards`. 100 to 1,000 MB a shard is a good size.
      labels: label name -> class names, in the order of their numbers.
      encoding: of arrays, all lossless: `png`, `webp` (smaller, slower to write), or `raw` (large, nothing to decode).

    Returns:
      The number of records written.

    Raises:
      DataError: for a folder that has shards already, an unknown encoding, and a record that does not fit, by number.
      UnreadableRecord: for bytes that are no image.
    """
    labels = {name: list(classes) for name, classes in (labels or {}).items()}
    _local(path)
    folder = epath.Path(path)
    if encoding not in ("png", "webp", "raw"):
        raise DataError(f"encoding is 'png', 'webp' or 'raw'; got '{encoding}'")
    if shards < 1:
        raise DataError(f"shards must be 1 or more; got {shards}")
    if taken := set(labels) & {*RESERVED, "shape"}:
        raise DataError(f"a label cannot be called '{min(taken)}': the name has another use; rename it")
    if folder.is_dir() and any(entry.name.endswith(SUFFIX) for entry in folder.iterdir()):
        raise DataError(f"'{path}' has {SUFFIX} files already: write to another folder, or delete them first")
    folder.mkdir(parents=True, exist_ok=True)
    names = [str(folder / f"data-{shard:05d}-of-{shards:05d}{SUFFIX}") for shard in range(shards)]
    writers = [ArrayRecordWriter(name, "group_size:1") for name in names]  # group 1: random access
    count = 0
    try:
        for count, record in enumerate(records, start=1):
            writers[(count - 1) % shards].write(_pack(record, count - 1, labels, encoding))
    finally:
        for writer in writers:
            writer.close()
    if count == 0:
        raise DataError("there were no records to write")
    (folder / INDEX).write_text(json.dumps({"records": count, "labels": labels}, indent=1, ensure_ascii=False) + "\n")
    return count


def _local(path: str) -> None:
    if "://" in path:
        raise DataError(f"ArrayRecord files are local ones; got '{path}': copy them, or mount the bucket (gcsfuse)")


def _pack(record: Mapping[str, Any], number: int, labels: Mapping[str, Sequence[str]], encoding: str) -> bytes:
    if set(record) != {"image", *labels}:
        raise DataError(f"record {number} has {sorted(record)}, expected {sorted(['image', *labels])}")
    fields: dict[str, Any] = {}
    for name, classes in labels.items():
        value = record[name]
        known = value in classes if isinstance(value, str) else 0 <= int(value) < len(classes)
        if not known:
            raise DataError(f"record {number}: {name} is {value!r}, which is none of its {len(classes)} classes")
        fields[name] = classes.index(value) if isinstance(value, str) else int(value)
    image = record["image"]
    if isinstance(image, bytes):
        decode(image, f"record {number}")
        return msgpack.packb({"image": image, **fields})
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {list(image.shape)}"
        raise DataError(f"record {number}: an image is bytes or a uint8 array [H, W, 3]; got {found}")
    if encoding == "raw":
        return msgpack.packb({"image": image.tobytes(), "shape": list(image.shape), **fields})
    out = io.BytesIO()
    Image.fromarray(image).save(out, encoding.upper(), **({"lossless": True} if encoding == "webp" else {}))
    return msgpack.packb({"image": out.getvalue(), **fields})

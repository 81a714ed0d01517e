"""Data sets encoded beforehand: folders of latents or token ids, which `maskdit encode` writes and loaders read.

A folder holds `manifest.json` and shards `latents-00000-of-00004.array_record` of consecutive records, in the source's
order. A record is a msgpack map: a class number for each label, the bytes of each stream's array, and `name` where it
was asked for; or `unreadable`, why the source could not read it, so that numbers stay those of the source. Streams are
named arrays: one of `moments` (mean and log variance of a posterior, before scale and shift), `values` (latents as a
generator sees them) and `ids`, each of the image and of its mirror image; and those of its text: `text`, `pooled` and
`scalar/NAME`. The embeddings of the empty text stand once in the folder, in `empty_text.npz`.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from maskdit.data.array_record import SUFFIX
from maskdit.data.embeddings import all_arrays, is_text
from maskdit.data.source import DataError, Record, UnreadableRecord, fields_only

MANIFEST = "manifest.json"
FORMAT = 1
LATENTS = ("moments", "values", "ids")
EMPTY_TEXT = "empty_text.npz"
"""`null_text` and `null_pooled`, named in the manifest."""
_KEYS = ("tokenizer", "checksum", "latent", "size", "fit", "flips", "labels", "source", "records", "shards", "done")


@dataclasses.dataclass(frozen=True)
class Stream:
    """A named array of every record.

    Attributes:
      shape: of one copy.
      dtype: of its numbers.
      copies: 2 where the mirror image's follows the image's, else 1.
    """

    shape: tuple[int, ...]
    dtype: str
    copies: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of a record."""
        return self.copies * math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def pack(self, copies: list[np.ndarray]) -> bytes:
        """The bytes of a record."""
        return b"".join(np.ascontiguousarray(copy, self.dtype).tobytes() for copy in copies)

    def unpack(self, data: bytes) -> np.ndarray:
        """The copies `[copies, ...]` of a record."""
        return np.frombuffer(data, self.dtype).reshape(self.copies, *self.shape)


def shard_name(number: int, shards: int) -> str:
    """The name of a shard's file."""
    return f"latents-{number:05d}-of-{shards:05d}{SUFFIX}"


def read_manifest(folder: str) -> dict[str, Any] | None:
    """What a folder says of itself; None where there is no manifest.

    Raises:
      DataError: for a manifest that is none, or of another format.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path) as file:
            manifest = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read as the manifest of encoded data: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise DataError(f"'{path}' is of format {found!r}, this version reads {FORMAT}: encode the data again")
    if missing := [key for key in (*_KEYS, "streams") if key not in manifest]:
        raise DataError(f"'{path}' says nothing of {', '.join(missing)}: it is damaged, encode the data again")
    return manifest


def streams_of(manifest: Mapping[str, Any]) -> dict[str, Stream]:
    """The streams that a manifest names."""
    return {
        name: Stream(tuple(entry["shape"]), entry["dtype"], entry["copies"])
        for name, entry in manifest["streams"].items()
    }


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The records of an encoded folder.

    Attributes:
      path: the folder, local or mounted.

    Raises:
      DataError: at first use, for a folder that is missing, unfinished or incomplete.
    """

    path: str

    __getstate__ = fields_only

    def __len__(self) -> int:
        """Number of records, those too that the source could not read."""
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Record `index`: the copies `[copies, ...]` of each stream, and a class number for each label."""
        name, shards = self.describe(index), self._records
        try:
            fields = msgpack.unpackb(shards[index])
            if "unreadable" in fields:
                raise UnreadableRecord(name, fields["unreadable"])
            arrays = {stream: how.unpack(fields[stream]) for stream, how in self.streams.items()}
            self._check_ids(name, arrays)
            return {**arrays, **{label: int(fields[label]) for label in self.vocabulary}}
        except KeyError as error:
            raise UnreadableRecord(name, f"no {error} in the record") from error
        except (OSError, ValueError, RuntimeError, TypeError) as error:  # damaged
            raise UnreadableRecord(name, str(error).split("\n")[0]) from error

    def read(self, index: int, mirrored: bool) -> dict[str, Any]:
        """Record `index`: each stream's array, of the mirror image where asked for, and a class number per label; the
        empty text's embeddings too where there are any."""
        record = self[index] | self.null
        return record | {name: record[name][int(mirrored and how.copies > 1)] for name, how in self.streams.items()}

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of what `read` gives, by name; ids come as int32."""
        streams = {name: (how.shape, "int32" if name == "ids" else how.dtype) for name, how in self.streams.items()}
        return all_arrays(streams, self.null) | dict.fromkeys(self.vocabulary, ((), "int32"))

    @functools.cached_property
    def null(self) -> dict[str, np.ndarray]:
        """`null_text` and `null_pooled`, the embeddings of the empty text, where there are any."""
        names = (self.manifest.get("text") or {}).get("null", ())
        if not names:
            return {}
        path = os.path.join(self.path, EMPTY_TEXT)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in names}
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise DataError(
                f"'{path}', the embeddings of the empty text, cannot be read ({error}): copy it again, or run the same "
                "`maskdit encode` command again"
            ) from error

    @functools.cached_property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Label name -> class names."""
        return {name: tuple(classes) for name, classes in self.manifest["labels"].items()}

    @functools.cached_property
    def streams(self) -> dict[str, Stream]:
        """What is stored, by name."""
        return streams_of(self.manifest)

    def describe(self, index: int) -> str:
        """Path and number."""
        return f"{self.path}, record {index}"

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder says of itself."""
        if "://" in self.path:
            raise DataError(
                f"encoded folders are local ones; got '{self.path}': copy it, or mount the bucket (gcsfuse)"
            )
        manifest = read_manifest(self.path)
        if manifest is None:
            raise DataError(f"'{self.path}' has no {MANIFEST}: give a folder that `maskdit encode` has written")
        if not manifest["done"]:
            raise DataError(
                f"'{self.path}' is unfinished: run the same `maskdit encode` command again, it goes on from there"
            )
        return manifest

    def check(self, *, size: int, fit: str, flip: bool, text: bool, source: Any) -> None:
        """Holds the folder against the loader that is to give its records.

        Raises:
          DataError: where images of another size or fit were encoded, or of another split; where mirror images or texts
            are wanted and there are none.
        """
        manifest = self.manifest
        for name, ours in (("size", size), ("fit", fit)):
            if manifest[name] != ours:
                raise DataError(
                    f"'{self.path}' was encoded with {name} {manifest[name]}, data.{name} is {ours}: set "
                    f"--config.data.{name}={manifest[name]}, or encode the data again"
                )
        if flip and not manifest["flips"]:
            raise DataError(
                f"'{self.path}' has no mirrored copies and data.flip is on: set --config.data.flip=false, or "
                "encode with --flips"
            )
        if text and not any(is_text(name) for name in self.streams):
            raise DataError(f"data.text is set and '{self.path}' has no text: encode with --text FILE")
        theirs, split = manifest["source"], getattr(source, "split", None)
        same = theirs.get("target") == f"{type(source).__module__}:{type(source).__qualname__}"
        if same and split is not None and theirs.get("split") != split:
            raise DataError(
                f"'{self.path}' holds the split '{theirs.get('split')}', data.source.split is '{split}': give the "
                "folder of that split"
            )

    def check_tokenizer(self, tokenizer: Any, variables: Any) -> None:
        """Refuses latents that another tokenizer's encoder has made.

        Args:
          tokenizer: the module of the run.
          variables: its variables.

        Raises:
          DataError: naming both.
        """
        from maskdit.tokenizers.streams import encoder_checksum  # worker processes read without JAX's tracing

        manifest, latent = self.manifest, tokenizer.latent
        theirs = f"the encoder of {manifest.get('checkpoint', 'another run')}, {_kind(manifest['tokenizer'])}"
        ours = type(tokenizer).__name__
        checksum = encoder_checksum(tokenizer, variables, manifest["size"])
        if checksum != manifest["checksum"]:
            raise DataError(
                f"the latents in '{self.path}' were made by {theirs} with checksum {manifest['checksum'][:12]}; this "
                f"run's tokenizer, {ours}, has an encoder with checksum {checksum[:12]}: set --config.task.tokenizer "
                "to what made them, or encode the data with this tokenizer"
            )
        for name in ("scale", "shift"):
            value = json.loads(json.dumps(getattr(latent, name)))
            if "values" in self.streams and value != manifest["latent"][name]:
                raise DataError(
                    f"the latents in '{self.path}' were made by {theirs} with {name} {manifest['latent'][name]}; this "
                    f"run's tokenizer, {ours}, has {name} {value}: set it to theirs, or encode the data again"
                )

    def _check_ids(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuses ids that the tokenizer does not have: a network would take them for masks, or read past its table."""
        codes = self.manifest["latent"].get("vocabulary")
        if codes is not None and "ids" in arrays and (arrays["ids"] >= codes).any():
            raise UnreadableRecord(name, f"token id {arrays['ids'].max()}, the tokenizer has 0 to {codes - 1}")

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        manifest = self.manifest
        names = [shard_name(number, manifest["shards"]) for number in range(manifest["shards"])]
        missing = [name for name in names if not os.path.isfile(os.path.join(self.path, name))]
        if missing:
            raise DataError(
                f"'{self.path}' lacks {len(missing)} of {len(names)} shards, such as {missing[0]}: copy them again, or "
                "run the same `maskdit encode` command again"
            )
        try:
            records = ArrayRecordDataSource([os.path.join(self.path, name) for name in names])
            count = len(records)
        except (RuntimeError, OSError) as error:
            raise DataError(f"a shard in '{self.path}' cannot be opened ({error}): copy the shards again") from error
        if count != manifest["records"]:
            raise DataError(
                f"the shards in '{self.path}' hold {count} records, {MANIFEST} says {manifest['records']}: copy them "
                "again, or run the same `maskdit encode` command again"
            )
        return records


def _kind(spec: Mapping[str, Any]) -> str:
    """The class that a spec names."""
    return str(spec.get("target", "")).rpartition(":")[2] or "a tokenizer"

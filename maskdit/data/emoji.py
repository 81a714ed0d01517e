"""The data set that ships with the library: 5,952 emoji of four styles at 64x64 (see embedded/README.md)."""

import dataclasses
import functools
import hashlib
import importlib.resources
import io
import json
import zlib
from typing import Any

import numpy as np

from maskdit.data.source import DataError, Record, fields_only
from maskdit.data.transforms import decode

LABELS = ("style", "group", "subgroup")
_SPLITS = ("train", "val")
_SHA256 = "72d6cd76bacefa443298153e67d85ee23579002a6653fff77993ff84464c19a8"
_WORDS = {
    "noto": "an emoji of",
    "noto-blob": "a blob emoji of",
    "fluent-3d": "a glossy 3d emoji of",
    "fluent-flat": "a flat emoji of",
}


@dataclasses.dataclass(frozen=True)
class Emoji:
    """The embedded emoji. Pictures stay in memory once decoded (73 MB for all).

    Attributes:
      split: `train` (5,432 pictures) or `val` (520); all styles of an emoji are in the same split.
      labels: the labels of a record, any of `style` (4 classes), `group` (8) and `subgroup` (95); none, `()`, for
        unconditional training.

    Raises:
      DataError: for an unknown split or label, and where the embedded file is damaged.
    """

    split: str = "train"
    labels: tuple[str, ...] = ("style", "group")

    def __post_init__(self) -> None:
        if self.split not in _SPLITS:
            raise DataError(f"the emoji have the splits {' and '.join(_SPLITS)}; got '{self.split}'")
        if (
            isinstance(self.labels, str)
            or not set(self.labels) <= set(LABELS)
            or len(set(self.labels)) < len(self.labels)
        ):
            raise DataError(f"labels of the emoji are a tuple of different names out of {LABELS}; got {self.labels!r}")

    __getstate__ = fields_only

    def __len__(self) -> int:
        """Number of pictures in the split."""
        return len(self.pictures)

    def __getitem__(self, index: int) -> Record:
        """Picture `index` of the split: `image` uint8 `[64, 64, 3]`, read-only, and a class number for each label."""
        image = self._decoded[index]
        if image is None:
            begin, end = self._file["offset"][self.pictures[index] :][:2]
            image = decode(self._file["webp"][begin:end].tobytes(), f"emoji picture {self.pictures[index]}")
            image.setflags(write=False)
            self._decoded[index] = image
        return {"image": image, **{name: int(self._file[name][self.pictures[index]]) for name in self.labels}}

    @functools.cached_property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Label name -> class names, for the labels asked for."""
        return {name: tuple(self._info[f"{name}s"]) for name in self.labels}

    @functools.cached_property
    def pictures(self) -> np.ndarray:
        """The numbers, in the file, of the pictures of this split."""
        return np.flatnonzero(self._file["val"] == (self.split == "val"))

    def caption(self, index: int) -> str:
        """A sentence for a picture, such as `a blob emoji of rolling on the floor laughing (face, lol)`."""
        picture = self.pictures[index]
        style = self._info["styles"][self._file["style"][picture]]
        tags = self._info["tags"][picture].replace(",", ", ")
        return f"{_WORDS[style]} {self._info['name'][picture]}" + (f" ({tags})" if tags else "")

    def describe(self, index: int) -> str:
        """The picture's number in the file and its caption."""
        return f"emoji picture {self.pictures[index]}, {self.caption(index)}"

    @functools.cached_property
    def _file(self) -> dict[str, np.ndarray]:
        raw = importlib.resources.files("maskdit.data.embedded").joinpath("emoji64.npz").read_bytes()
        if hashlib.sha256(raw).hexdigest() != _SHA256:
            raise DataError(f"the embedded emoji64.npz is damaged ({len(raw)} bytes): install maskdit again")
        with np.load(io.BytesIO(raw)) as arrays:
            return dict(arrays)

    @functools.cached_property
    def _info(self) -> dict[str, Any]:
        return json.loads(zlib.decompress(self._file["info_zjson"].tobytes()))

    @functools.cached_property
    def _decoded(self) -> list[np.ndarray | None]:
        return [None] * len(self.pictures)

"""A folder of finished images of one size, as generators of any kind leave them: read in the order of their names."""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath
from PIL import Image

from maskdit.data.folder import SUFFIXES
from maskdit.data.source import DataError, UnreadableRecord
from maskdit.data.transforms import decode

_THREADS = 8
"""Files read and decoded at once; Pillow decodes outside of Python's lock."""
_AHEAD = 64
"""Files held in memory at once by a checksum."""


@dataclasses.dataclass(frozen=True)
class PictureFolder:
    """The image files in a folder and the folders inside of it, sorted by their path in the folder.

    Files are those that end in `maskdit.data.folder.SUFFIXES`; hidden ones are left out. Grey images and such with a
    palette become colour ones, as in ADM and pytorch-fid; transparency is laid over white (see
    `maskdit.data.transforms.to_rgb`). A file that cannot be read is an error: a figure of fewer images than were asked
    for would be another one.

    Attributes:
      path: the folder, local or `gs://`.

    Raises:
      DataError: at first use, for a folder that is missing or has no images; where they are read, for one that is
        broken or of another size than the first.
    """

    path: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Paths of the images in the folder, sorted."""
        folder = epath.Path(self.path)
        if not folder.is_dir():
            raise DataError(f"there is no folder '{self.path}': check the path")
        names, others = [], 0
        inside = [""]
        while inside:
            within = inside.pop()
            for entry in (folder / within if within else folder).iterdir():
                name = f"{within}{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(SUFFIXES):
                    names.append(name)
                elif entry.is_dir():
                    inside.append(f"{name}/")
                else:
                    others += 1
        if not names:
            found = f"{others} other files" if others else "no files"
            raise DataError(f"'{self.path}' has no images: found {found}, expected {', '.join(SUFFIXES)} files in it")
        return tuple(sorted(names))

    @functools.cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, 3)`, of the size of the first image; the others are held against it where they are read."""
        height, width, channels = self._image(self.names[0]).shape
        return len(self), height, width, channels

    def batches(self, size: int, start: int = 0) -> Iterator[np.ndarray]:
        """Images uint8 `[size, H, W, 3]` from image `start` on, in order; the last batch may be smaller.

        Raises:
          DataError: for a file that cannot be read, and for the first image of another size.
        """
        _, height, width, _ = self.shape
        with ThreadPoolExecutor(_THREADS) as pool:
            for begin in range(start, len(self), size):
                names = self.names[begin : begin + size]
                images = list(pool.map(self._image, names))
                for name, image in zip(names, images, strict=True):
                    self._check_size(name, (image.shape[1], image.shape[0]), (width, height))
                yield np.stack(images)

    @functools.cached_property
    def checksum(self) -> str:
        """sha256 over the names, sizes in bytes and bytes of all files, which it reads, and whose sizes it checks.

        Raises:
          DataError: as `batches`, before anything is decoded.
        """
        digest = hashlib.sha256()
        first: tuple[int, int] | None = None
        with ThreadPoolExecutor(_THREADS) as pool:
            for begin in range(0, len(self), _AHEAD):
                names = self.names[begin : begin + _AHEAD]
                for name, data in zip(names, pool.map(self._bytes, names), strict=True):
                    size = self._size(name, data)
                    first = first or size
                    self._check_size(name, size, first)
                    digest.update(f"{name}\0{len(data)}\0".encode())
                    digest.update(data)
        return digest.hexdigest()

    def _where(self, name: str) -> str:
        return str(epath.Path(self.path) / name)

    def _bytes(self, name: str) -> bytes:
        try:
            return (epath.Path(self.path) / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self._where(name)}: {error.strerror or error}; see to the file") from error

    def _image(self, name: str) -> np.ndarray:
        try:
            return decode(self._bytes(name), self._where(name))
        except UnreadableRecord as error:
            raise DataError(f"{error}; make it again, or take it out of the folder") from error

    def _size(self, name: str, data: bytes) -> tuple[int, int]:
        """Width and height, out of the file's beginning; nothing is decoded."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                return image.size
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            reason = f"{self._where(name)}: not a readable image"
            raise DataError(f"{reason}; make it again, or take it out of the folder") from error

    def _check_size(self, name: str, size: tuple[int, int], first: tuple[int, int]) -> None:
        """Refuses a size, width and height in pixels, that is not that of the first image."""
        if size != first:
            raise DataError(
                f"the images of '{self.path}' are of different sizes (width x height): {self.names[0]} is {first[0]} x "
                f"{first[1]} and {name} {size[0]} x {size[1]}; bring all to one size first"
            )

"""Images of any generator, out of an array file or a folder, read in batches; and array files written in batches.

Neither holds more than a batch in memory, however many images there are.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from maskdit.data.picture_folder import PictureFolder
from maskdit.data.source import DataError

ARRAY = "arr_0"
"""What the images are called in a `.npz` file, as ADM's tools have it."""
_AHEAD = 64
"""Images held in memory at once by a pass over a file."""
_Header = tuple[tuple[int, ...], bool, np.dtype]
"""Shape, whether the first axis varies fastest, and type."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Finished images, all of one size, in a fixed order.

    Attributes:
      path: a `.npz` file with the images as `arr_0`, or as its only array of four axes; a `.npy` file; or a folder of
        image files, see `PictureFolder`. Local or `gs://`. Arrays are uint8 `[N, H, W, 3]`, compressed or not.

    Raises:
      DataError: at first use, with a sentence, for what is missing, empty, or no such array. Arrays of floats are
        refused and not rounded, as figures depend on how that is done.
    """

    path: str

    def __len__(self) -> int:
        """Number of images."""
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, 3)`."""
        return self._images.shape

    @property
    def checksum(self) -> str:
        """sha256; reads everything, and so finds what is broken.

        Of an array over its shape and the bytes of its pixels, so that packing has no part in it; of a folder over the
        names, sizes and bytes of the files.
        """
        return self._images.checksum

    def batches(self, size: int, start: int = 0) -> Iterator[np.ndarray]:
        """Images uint8 `[size, H, W, 3]` from image `start` on, in order; the last batch may be smaller.

        Raises:
          DataError: for what is cut off or broken, and in a folder for an image of another size.
        """
        if size < 1 or start < 0:
            raise DataError(f"images are read 1 or more at once and from number 0 on, got {size} and {start}")
        return self._images.batches(size, start)

    @functools.cached_property
    def _images(self) -> "PictureFolder | ImageArray":
        path = epath.Path(self.path)
        if self.path.endswith((".npz", ".npy")) and not path.is_dir():
            return ImageArray(self.path)
        if path.is_dir():
            return PictureFolder(self.path)
        found = "is no such file" if path.exists() else "does not exist"
        raise DataError(f"'{self.path}' {found}: images are a .npz or .npy file, or a folder of image files")


@dataclasses.dataclass(frozen=True)
class ImageArray:
    """The images of a `.npz` or `.npy` file; see `Pictures`."""

    path: str

    @functools.cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, 3)`; the array is checked."""
        with self._opened() as (stream, header):
            shape, fortran, dtype = header
            if fault := _fault(header):
                raise DataError(f"{self._name} is {dtype} {list(shape)}: {fault}")
            if dtype != np.uint8:
                raise DataError(f"{self._name} is {dtype} {list(shape)}, not uint8: {_about(stream, header)}")
            if fortran:
                raise DataError(
                    f"{self._name} is stored with its first axis varying fastest (Fortran order) and cannot be read "
                    "image by image: save it again through np.ascontiguousarray"
                )
        return shape  # type: ignore[return-value]  # `_fault` has seen four axes

    def batches(self, size: int, start: int = 0) -> Iterator[np.ndarray]:
        """See `Pictures`."""
        count, *rest = self.shape
        with self._opened(start * int(np.prod(rest))) as (stream, _):
            for begin in range(start, count, size):
                images = np.empty((min(size, count - begin), *rest), np.uint8)
                self._fill(stream, images, begin)
                yield images
            stream.read(1)  # at its end, a packed file is held against its checksum

    @functools.cached_property
    def checksum(self) -> str:
        """See `Pictures`."""
        digest = hashlib.sha256(f"{list(self.shape)} uint8\0".encode())
        for images in self.batches(_AHEAD):
            digest.update(images.reshape(-1).data)
        return digest.hexdigest()

    @property
    def _name(self) -> str:
        return f"'{self.path}'" if self._member is None else f"'{self._member[:-4]}' of '{self.path}'"

    def _fill(self, stream: Any, images: np.ndarray, begin: int) -> None:
        """Reads images from number `begin` on."""
        if (got := _read_into(stream, images)) < images.nbytes:
            number = begin + got // images[0].nbytes
            raise DataError(f"{self._name} ends in image {number} of {self.shape[0]}: it is cut off, make it again")

    @contextlib.contextmanager
    def _opened(self, skip: int = 0) -> Iterator[tuple[Any, _Header]]:
        """A stream of the array's file, so many bytes after its header; and the header."""
        with self._told(), epath.Path(self.path).open("rb") as file, contextlib.ExitStack() as stack:
            if self._member is None:
                stream: Any = file
            else:
                archive = stack.enter_context(zipfile.ZipFile(file))
                if skip and (at := _stored_at(file, archive.getinfo(self._member))) is not None:
                    file.seek(at)  # zipfile would read all that comes before
                    stream = file
                else:
                    stream = stack.enter_context(archive.open(self._member))
            header = _read_header(stream)
            if skip:
                stream.seek(skip, io.SEEK_CUR)
            yield stream, header

    @functools.cached_property
    def _member(self) -> str | None:
        """The file in a `.npz` that holds the images; None of a `.npy`."""
        if self.path.endswith(".npy"):
            return None
        with self._told(), epath.Path(self.path).open("rb") as file, zipfile.ZipFile(file) as archive:
            headers: dict[str, _Header] = {}
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as stream:
                        headers[name] = _read_header(stream)
        images = [name for name, (shape, _, _) in headers.items() if len(shape) == 4]
        if f"{ARRAY}.npy" in headers:
            return f"{ARRAY}.npy"
        if len(images) != 1:
            each = [f"{name[:-4]} {dtype} {list(shape)}" for name, (shape, _, dtype) in headers.items()]
            raise DataError(
                f"'{self.path}' holds {', '.join(each) or 'no arrays'}: expected the images as {ARRAY}, or as the only "
                "array of four axes, uint8 [N, H, W, 3]"
            )
        return images[0]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tells what cannot be read in a sentence."""
        try:
            yield
        except DataError:
            raise
        except FileNotFoundError as error:
            raise DataError(f"there is no file '{self.path}': check the path") from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DataError(f"'{self.path}' cannot be read as an array file: {reason}; make it again") from error


def write_npz(
    path: epath.Path, shape: tuple[int, ...], images: Iterable[np.ndarray], beside: Mapping[str, Any] | None = None
) -> None:
    """Writes images as they come into an uncompressed `.npz` file: ADM's evaluator reads it as a stream.

    The same arrays give the same bytes.

    Args:
      path: the file, local or `gs://`.
      shape: of all images together, `(N, H, W, 3)`.
      images: uint8 `[n, H, W, 3]` each, N in all: `arr_0`.
      beside: arrays or lists of other names.

    Raises:
      ValueError: for images of another type or shape, and another number of them.
    """
    done = 0
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(f"{ARRAY}.npy", "w", force_zip64=True) as stream:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(stream, header)
            for some in images:
                if some.dtype != np.uint8 or some.shape[1:] != tuple(shape[1:]):
                    expected = str(["n", *shape[1:]]).replace("'", "")
                    raise ValueError(f"expected uint8 {expected}, got {some.dtype} {list(some.shape)}")
                stream.write(np.ascontiguousarray(some).reshape(-1).data)
                done += len(some)
        if done != shape[0]:
            raise ValueError(f"expected {shape[0]} images, got {done}")
        for name, values in (beside or {}).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(values), allow_pickle=False)


def _read_header(stream: Any) -> _Header:
    """Reads the header of a `.npy` file, and leaves the stream behind it.

    Raises:
      ValueError: for another kind of file.
    """
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format is for records, no images")
    return readers[version](stream)


def _stored_at(file: Any, info: zipfile.ZipInfo) -> int | None:
    """Where in a zip file the bytes of an uncompressed file begin; None for a compressed one."""
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    file.seek(info.header_offset)
    lengths = struct.unpack("<HH", file.read(30)[26:])  # of the name and the extra fields, which follow
    return int(info.header_offset + 30 + sum(lengths))


def _read_into(stream: Any, images: np.ndarray) -> int:
    """Fills an array with what comes next; gives the number of bytes that there were."""
    view, got = images.reshape(-1).view(np.uint8).data, 0
    while got < len(view) and (some := stream.readinto(view[got:])):
        got += some
    return got


def _fault(header: _Header) -> str:
    """What is wrong with the shape of an array; empty where nothing is."""
    shape, _, dtype = header
    expected = "expected uint8 [N, H, W, 3]"
    if dtype.hasobject:
        return f"Python objects, which are not read; {expected}"
    if len(shape) != 4:
        return f"it has {len(shape)} axes; {expected}"
    if not shape[0]:
        return "there are no images in it"
    if shape[3] != 3 and shape[1] == 3:
        return f"channels come before height and width; {expected}: transpose with (0, 2, 3, 1)"
    if shape[3] != 3:
        kind = {1: " (grey)", 4: " (transparency)"}.get(shape[3], "")
        advice = {1: ": repeat the channel three times", 4: ": lay the images over a colour"}.get(shape[3], "")
        return f"images have {shape[3]} channels{kind}; {expected}{advice}"
    return "" if min(shape) else f"images have no pixels; {expected}"


def _about(stream: Any, header: _Header) -> str:
    """What images of another type than uint8 hold, and what to do; reads all of them."""
    (count, *rest), fortran, dtype = header
    advice = "round them to whole numbers from 0 to 255 yourself, as it changes the figures"
    if dtype.kind != "f" or fortran:
        return f"{advice}: images.astype(np.uint8) where they are such numbers already"
    broken, first, low, high, done = 0, -1, np.inf, -np.inf, 0
    while done < count:
        images = np.empty((min(_AHEAD, count - done), *rest), dtype)
        if _read_into(stream, images) < images.nbytes:
            return "and it is cut off: make it again"
        finite = np.isfinite(images)
        bad = np.flatnonzero(~finite.all((1, 2, 3)))
        if len(bad):
            first = done + int(bad[0]) if first < 0 else first
            broken += len(bad)
        low = min(low, float(images.min(where=finite, initial=np.inf)))
        high = max(high, float(images.max(where=finite, initial=-np.inf)))
        done += len(images)
    if broken:
        return (
            f"{broken} of {count} images hold NaN or infinite numbers, the first is image {first}: see to the "
            f"generator; then {advice}"
        )
    scale = "127.5 * images + 127.5" if low < 0 else "255 * images" if high <= 1 else "images"
    return (
        f"its numbers go from {low:g} to {high:g}; {advice}, such as np.clip(np.rint({scale}), 0, 255).astype(np.uint8)"
    )

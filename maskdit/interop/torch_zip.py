"""Where the files in the zip archives of `torch.save` lie, so that a tensor is read without the rest."""

import dataclasses
import os
import struct
import zipfile
from typing import BinaryIO

from maskdit.interop.tensors import FileError, printable

MAGIC = b"PK\3\4"
"""What such an archive begins with."""
_MAX_DIRECTORY = 1 << 24  # bytes; what zipfile makes of them takes ten times the memory


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a file lies in its archive, or a storage in its file.

    Attributes:
      start: byte of the archive.
      size: in bytes.
    """

    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class _Directory:
    """A file as zipfile needs it to find what an archive holds: to read much at once is an error."""

    handle: BinaryIO

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """As that of the file."""
        return self.handle.seek(place, whence)

    def tell(self) -> int:
        """As that of the file."""
        return self.handle.tell()

    def read(self, count: int = -1) -> bytes:
        """As that of the file."""
        if count > _MAX_DIRECTORY:
            raise ValueError(f"a directory of {count} bytes")
        return self.handle.read(count)


def files_in(path: str, handle: BinaryIO, size: int) -> dict[str, Place]:
    """Name -> place of all files in a zip archive, which may not be compressed.

    Args:
      path: for messages.
      handle: the archive.
      size: of the archive, in bytes.

    Raises:
      FileError: for an archive that is cut off, damaged, encrypted, compressed, or one of TorchScript.
    """
    try:
        with zipfile.ZipFile(_Directory(handle)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        # An archive has its directory at the end, so that half of one has none.
        raise FileError(f"'{path}' ends early or is damaged, as half a download is: download it again") from error
    if any(info.filename.split("/")[-1] == "constants.pkl" for info in infos):
        raise FileError(
            f"'{path}' is a TorchScript archive, a program with its weights: save model.state_dict() with torch.save"
        )
    entries: dict[str, Place] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = printable(info.filename)
        if info.flag_bits & 1:
            raise FileError(f"'{path}' is encrypted ({name}): decrypt it first")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise FileError(f"'{path}' is compressed ({name}), which torch's files are not: unpack it first")
        if info.orig_filename in entries:
            raise FileError(f"'{path}' holds two files of the name {name}: it is damaged")
        handle.seek(min(max(0, info.header_offset), size))
        local = handle.read(30)
        if len(local) < 30 or not local.startswith(MAGIC) or info.header_offset < end:
            raise FileError(f"'{path}' is damaged at {name}: download it again")
        start = info.header_offset + 30 + sum(struct.unpack("<2H", local[26:]))
        end = start + info.file_size
        if end > size:
            raise FileError(f"'{path}' is damaged at {name}: download it again")
        entries[info.orig_filename] = Place(start, info.file_size)
    return entries

"""Where downloads are kept, and the checksums that hold a source to what it gave the first time.

    ROOT/checksums.json                      source -> sha256, and the file that it was computed from; no secrets
    ROOT/downloads/KEY/NAME                  files of URLs; KEY is the beginning of the sha256 of the URL
    ROOT/downloads/KEY/NAME.part             an unfinished one, and NAME.part.tag with the server's mark of its version

ROOT is `$MASKDIT_CACHE`, `$XDG_CACHE_HOME/maskdit` or `~/.cache/maskdit`.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from maskdit.cache_folder import cache_folder
from maskdit.interop.tensors import FileError, first_bytes

try:
    import fcntl
except ImportError:  # Windows: two processes at one download are not kept apart
    fcntl = None  # type: ignore[assignment]

_LOG = logging.getLogger(__name__)
ELSEWHERE = "or fetch the file elsewhere and give its path"


class DownloadError(OSError):
    """Weights that could not be downloaded; the message says what to do."""


def cache_root() -> pathlib.Path:
    """The folder of all downloads; it need not exist."""
    own = os.environ.get("MASKDIT_CACHE")
    try:
        return pathlib.Path(own).expanduser() if own else cache_folder()
    except RuntimeError as error:
        raise DownloadError("there is no home folder to keep downloads in: set MASKDIT_CACHE to a folder") from error


def shown(source: str) -> str:
    """A source as messages and the record hold it: without the login and the query of a URL, which may be secret."""
    start, query, _ = re.sub(r"(?<=://)[^/?#]*@", "", source.partition("#")[0]).partition("?")
    return f"{start}?..." if query else start


def folder_of(root: pathlib.Path, source: str) -> pathlib.Path:
    """Where the files of a source are kept; it need not exist."""
    return root / "downloads" / _hashed(source)


def entry_of(source: str) -> str:
    """The name of a source in the record: what is shown of it, and a hash where that is not all."""
    return source if shown(source) == source else f"{shown(source)} ({_hashed(source)})"


def _hashed(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


@contextlib.contextmanager
def disk_errors(root: pathlib.Path) -> Iterator[None]:
    """Turns an error of the disk while the cache is in use into a sentence.

    Raises:
      DownloadError: without permission or room, and for other errors of the disk.
    """
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"the cache {root} cannot be used ({error.strerror or error}): free some room or give permission there, or "
            "set MASKDIT_CACHE to another folder, then run it again"
        ) from error


@contextlib.contextmanager
def locked(path: pathlib.Path, what: str) -> Iterator[None]:
    """Keeps other processes out of `what` while it is held, by a lock on an empty file."""
    if fcntl is None:
        yield
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("waiting for another process at %s", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file as a whole: a reader finds the old or the new one."""
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file, indent=1, sort_keys=True)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def sha256_of(path: pathlib.Path) -> str:
    """The checksum of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded(root: pathlib.Path, source: str) -> str | None:
    """The checksum that a source is held to; None before its first download.

    Raises:
      DownloadError: a record that cannot be read; ask before a download, not after it.
    """
    entry = _records(root).get(entry_of(source))
    return entry["sha256"] if entry else None


def record(root: pathlib.Path, source: str, path: pathlib.Path, digest: str) -> None:
    """Notes the checksum of a source, and the size and time of the file that it was computed from.

    Raises:
      DownloadError: a cache that cannot be written to.
    """
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / "checksums.lock", "the checksums"):
            write_json(_checksums(root), {**_records(root), entry_of(source): {"sha256": digest, **_mark(path)}})


def hold(root: pathlib.Path, source: str, path: pathlib.Path) -> None:
    """Holds a file that is there already to the checksum of its source, or records it where there is none yet.

    The checksum is computed again only where path, size or time of the file are others than the recorded ones.

    Raises:
      DownloadError: a file with another checksum or that is no weights, and errors of the disk.
    """
    entry = _records(root).get(entry_of(source))
    try:
        first_bytes(path)
    except FileError as error:
        raise DownloadError(f"{error}; for that, {forgetting(root, source, path)}") from error
    with disk_errors(root):
        if entry is not None and {"sha256": entry["sha256"], **_mark(path)} == entry:
            return
        digest = sha256_of(path)
    if entry is not None and entry["sha256"] != digest:
        raise DownloadError(
            f"{path} has the sha256 {digest}, but {shown(source)} gave {entry['sha256']} at its first download: delete "
            f"the file to fetch it again, or, if you trust it, the entry '{entry_of(source)}' in {_checksums(root)}"
        )
    record(root, source, path, digest)


def refused(root: pathlib.Path, source: str, path: pathlib.Path, digest: str) -> DownloadError | None:
    """The error of a new download that is no weights, or another file than the first one was; None for a good one."""
    try:
        first_bytes(path)
    except FileError as error:
        return DownloadError(f"{shown(source)} gave no weights, and nothing was kept: {error}, {ELSEWHERE}")
    known = recorded(root, source)
    if known in (None, digest):
        return None
    return DownloadError(
        f"{shown(source)} is another file now: its sha256 is {digest}, and was {known} at the first download; it was "
        f"not kept. If you trust it, delete the entry '{entry_of(source)}' in {_checksums(root)} and run it again"
    )


def forgetting(root: pathlib.Path, source: str, path: pathlib.Path) -> str:
    """What to delete so that a source is fetched anew, in words."""
    return f"delete {path} and the entry '{entry_of(source)}' in {_checksums(root)}"


def _checksums(root: pathlib.Path) -> pathlib.Path:
    return root / "checksums.json"


def _records(root: pathlib.Path) -> dict[str, dict[str, Any]]:
    path = _checksums(root)
    try:
        records = json.loads(path.read_bytes())
        if all(isinstance(entry["sha256"], str) for entry in records.values()):
            return records
        fault = "an entry without sha256"
    except (FileNotFoundError, NotADirectoryError):  # the second is told where the cache is written to
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        fault = str(error)
    except OSError as error:
        fault = error.strerror or str(error)
    raise DownloadError(f"{path}, the checksums of earlier downloads, cannot be read ({fault}): repair or delete it")


def _mark(path: pathlib.Path) -> dict[str, Any]:
    stat = path.stat()
    return {"file": str(path), "size": stat.st_size, "modified_ns": stat.st_mtime_ns}

"""Published weights from a URL or a Hugging Face repository, once, into a cache.

A download that was cut off goes on where it stopped. The checksum of the first download of a source is recorded, and
later ones are held to it (`cache.py` tells where). What is in the cache is used without the network.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import importlib.util
import logging
import os
import pathlib
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from maskdit.interop.cache import (
    ELSEWHERE,
    DownloadError,
    cache_root,
    disk_errors,
    folder_of,
    forgetting,
    hold,
    locked,
    record,
    recorded,
    refused,
    shown,
)
from maskdit.interop.hub import fetch_from_hub, is_repository
from maskdit.interop.state_file import shard_files
from maskdit.interop.tensors import FileError

__all__ = ["ELSEWHERE", "DownloadError", "Page", "cache_root", "fetch", "page"]

_LOG = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds without an answer or a byte
_BLOCK = 1 << 20
_PAGE_LIMIT = 1 << 25  # bytes
_HEADERS = {"User-Agent": "maskdit", "Accept-Encoding": "identity"}


@dataclasses.dataclass(frozen=True)
class Page:
    """A page that was read whole.

    Attributes:
      url: where it came from in the end.
      kind: its media type.
      body: its bytes.
    """

    url: str
    kind: str
    body: bytes


def page(url: str, accept: str) -> Page:
    """Reads a page of a server, such as that of a package index; nothing is kept.

    Args:
      url: of http(s); a login in it is used.
      accept: media types that are asked for, as in the header of that name.

    Raises:
      DownloadError: as `fetch`, and for a page of more than 32 MiB.
    """
    if not re.match(r"https?://[^/]", url):
        raise DownloadError(f"{shown(url)} is not fetched: https:// and http:// are; {ELSEWHERE}")
    with _opened(url, 0, "", accept) as response:
        if response.status != 200:
            raise DownloadError(_refusal(url, response.status, response.reason))
        body = b""
        for block in _blocks(url, response):
            body += block
            if len(body) > _PAGE_LIMIT:
                raise DownloadError(f"{shown(url)} is a page of more than {_bytes(_PAGE_LIMIT)}; {ELSEWHERE}")
        return Page(response.geturl(), response.headers.get_content_type(), body)


def fetch(
    source: str,
    *,
    prefer: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> pathlib.Path:
    """Brings a file of weights to this machine.

    Args:
      source: a path that exists, which is given back; the http(s) URL of a file or of an `*.index.json`, whose shards
        are fetched beside it; or a Hugging Face repository, `hf://owner/name[/path/in/repo][@revision]` or
        `owner/name`.
      prefer: for a repository without the path of a file: patterns of the path in it, such as
        `transformer/diffusion_pytorch_model.*`. The first that fits one file decides, else the only file of weights.
      cache: the folder to keep downloads in instead of `cache_root()`. Files of repositories are kept by the package
        `huggingface_hub` in its own cache.
      sha256: the checksum that the file of a URL must have; None for that of its first download.

    Returns:
      The local path of the file or index.

    Raises:
      DownloadError: a source that is none of these; no network, permission or room; a server that refuses, a connection
        that is lost, a file that changed since its first download. The message says what to do.
      FileError: an index that is none.
    """
    root = pathlib.Path(cache) if cache is not None else cache_root()
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
    if scheme and scheme[1].lower() in ("http", "https"):
        return _from_url(source, root, sha256)
    if scheme and scheme[1] == "hf":
        return fetch_from_hub(source, prefer, root)
    if scheme:
        raise DownloadError(f"{shown(source)} is not fetched: https://, http:// and hf:// are; {ELSEWHERE}")
    if os.path.exists(source):
        return pathlib.Path(source)
    if is_repository(source) and not os.path.isdir(source.partition("/")[0]):  # else the path is mistyped
        return fetch_from_hub(source, prefer, root)
    raise DownloadError(f"there is no file {source}; give a path, a URL, or a repository as hf://owner/name/path")


def _from_url(url: str, root: pathlib.Path, sha256: str | None) -> pathlib.Path:
    try:
        parts = urllib.parse.urlsplit(url)
        host, name, _ = parts.hostname, _file_name(parts.path), parts.port  # each may be refused
    except ValueError:
        host, name = None, ""
    if not host:
        told = "the address" if "@" in url else shown(url)  # a login may have broken it
        raise DownloadError(f"{told} is no URL: it should look like https://host/folder/file")
    folder = folder_of(root, url)
    path = _kept(url, root, folder / name, sha256)
    if name.endswith(".index.json"):
        try:
            shards = sorted(set(shard_files(path).values()))
        except FileError as error:
            raise FileError(f"{error}; to fetch it again, {forgetting(root, url, path)}") from error
        for shard in shards:
            place = parts.path.rpartition("/")[0] + "/" + urllib.parse.quote(shard)
            _kept(urllib.parse.urlunsplit(parts._replace(path=place, fragment="")), root, folder / shard)
    return path


def _file_name(path: str) -> str:
    name = re.sub(r"[/\\:\0]", "_", urllib.parse.unquote(path.rpartition("/")[2]))[-200:]
    return "file" if name in ("", ".", "..") else name


def _kept(url: str, root: pathlib.Path, path: pathlib.Path, sha256: str | None = None) -> pathlib.Path:
    """The file of a URL, from the cache or downloaded into it."""
    recorded(root, url)  # a broken record is told before a download
    with disk_errors(root):
        if path.is_file():
            hold(root, url, path)
            if sha256 not in (None, recorded(root, url)):
                raise DownloadError(
                    f"{path} has not the sha256 {sha256}: {forgetting(root, url, path)}, then run it again"
                )
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock"), path.name):
            if not path.is_file():  # another process may have fetched it meanwhile
                part = path.with_name(f"{path.name}.part")
                digest = _download(url, part)
                _tag_of(part).unlink()
                error = refused(root, url, part, digest)
                if error is None and sha256 not in (None, digest):
                    told = f"its sha256 is {digest}, expected {sha256}; it was not kept"
                    error = DownloadError(f"{shown(url)} is another file than the known one: {told}, {ELSEWHERE}")
                if error is not None:
                    part.unlink()
                    raise error
                os.replace(part, path)
                record(root, url, path, digest)
    return path


def _download(url: str, part: pathlib.Path) -> str:
    """Writes what is missing of a file and returns the sha256 of all of it."""
    tag = _tag_of(part)
    version = tag.read_text() if tag.is_file() and part.is_file() else ""
    done = part.stat().st_size if version else 0
    response = _opened(url, done, version)
    if done and not _goes_on(response, done, version):
        done = 0
        if response.status != 200:  # part of another version, or of more than there is
            response.close()
            response = _opened(url, 0, "")
    with response:
        _check_answer(url, response, 206 if done else 200)
        left = response.headers.get("Content-Length")
        size = done + int(left) if left and left.isdecimal() else None
        _check_room(url, part, None if size is None else size - done)
        digest = hashlib.sha256()
        with part.open("ab" if done else "wb") as file, _progress(url, part.stem, size, done) as advance:
            tag.write_text(_version(response))  # after what was there of another version is cut
            if done:
                _add(digest, part)
            for block in _blocks(url, response):
                file.write(block)
                digest.update(block)
                done += len(block)
                advance(done)
    if size is not None and done != size:
        raise _lost(url, f"{done} of {size} bytes came")
    return digest.hexdigest()


def _tag_of(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(f"{part.name}.tag")


def _version(response: http.client.HTTPResponse) -> str:
    """What tells one version of the file from another: a strong entity tag or the time of its last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _goes_on(response: http.client.HTTPResponse, done: int, version: str) -> bool:
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
    return response.status == 206 and begins and _version(response) == version


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http(s) alone, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            fp.close()
            told = f"{shown(req.full_url)} leads to {shown(newurl)}"
            raise DownloadError(f"{told}, which is refused as not safe; {ELSEWHERE}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(url: str, done: int, version: str, accept: str = "*/*") -> Any:
    """The server's answer, from byte `done` on where the file is still of this version."""
    headers = {**_HEADERS, "Accept": accept}
    headers |= {"Range": f"bytes={done}-", "If-Range": version} if done else {}
    parts = urllib.parse.urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    address = urllib.parse.urlunsplit(parts._replace(netloc=place))
    request = urllib.request.Request(urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
    if login:
        told = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {told}")
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT)
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:
            return error  # also an answer; the caller asks again for all of it
        error.close()
        raise DownloadError(_refusal(url, error.code, str(error.reason))) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        why = getattr(reason, "strerror", None) or reason
        if isinstance(error, http.client.InvalidURL):  # which quotes it
            why = "it leads to an address that is none"
        raise DownloadError(
            f"{parts.hostname} cannot be reached ({why}): check the address {shown(url)} and the network, then run it "
            f"again, {ELSEWHERE}"
        ) from error


def _refusal(url: str, code: int, reason: str) -> str:
    url = shown(url)
    if code in (401, 403):
        return f"{url} is not open to everyone (the server answers {code}): fetch it with a login and give its path"
    if code in (404, 410):
        return f"there is no file at {url} (the server answers {code}): check the address, {ELSEWHERE}"
    if code == 429 or code >= 500:
        return f"the server cannot give {url} now (it answers {code}, {reason}): run it again later, {ELSEWHERE}"
    return f"the server does not give {url} (it answers {code}, {reason}): check the address, {ELSEWHERE}"


def _check_answer(url: str, response: http.client.HTTPResponse, status: int) -> None:
    if response.status != status:
        raise DownloadError(_refusal(url, response.status, response.reason))
    if response.headers.get_content_type() == "text/html":
        raise DownloadError(
            f"{shown(url)} is a web page, not a file of weights: open it in a browser and give the address of the file "
            f"itself, {ELSEWHERE}"
        )


def _check_room(url: str, part: pathlib.Path, needed: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed is not None and free < needed:
        raise DownloadError(
            f"{shown(url)} needs {_bytes(needed)} in {part.parent}, where {_bytes(free)} are free: free some, or set "
            "MASKDIT_CACHE to a folder on another disk"
        )


def _blocks(url: str, response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while block := response.read1(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _lost(url, str(error) or type(error).__name__) from error


def _lost(url: str, reason: str) -> DownloadError:
    return DownloadError(
        f"the connection was lost while {shown(url)} was fetched ({reason}): run it again, it goes on from where it "
        "stopped"
    )


def _add(digest: Any, path: pathlib.Path) -> None:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextlib.contextmanager
def _progress(url: str, name: str, size: int | None, done: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal or in a notebook, a line elsewhere; gives a function that takes the bytes done."""
    console = Console(stderr=True)
    if not (console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets"))):
        told = _bytes(size) if size is not None else "unknown size"
        _LOG.info("downloading %s (%s) from %s", name, told, urllib.parse.urlsplit(url).hostname)
        yield lambda done: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=size, completed=done)
        yield lambda done: bar.update(task, completed=done)

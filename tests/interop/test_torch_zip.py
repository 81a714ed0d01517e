"""Zip archives that torch does not write: compressed, damaged, of another kind."""

import functools
import struct
import zipfile

import numpy as np
import pytest

from maskdit.interop import torch_file
from tests.interop import attacks
from tests.interop.torch_writer import pickled, write_archive

refused = functools.partial(attacks.refused, torch_file.read)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.pt"


@pytest.fixture(scope="module")
def files():
    """The files of an archive with two storages."""
    data, storages = pickled({"v": np.ones(4, np.float32), "w": np.zeros(4, np.float32)})
    return {"a/data.pkl": data, **{f"a/data/{key}": base.tobytes() for key, base in storages}}


def test_archives_of_another_kind(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", files["a/data.pkl"])
    refused(path, "compressed", "a/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"")
    refused(path, "arr_0.npy", "torch.save")
    write_archive(path, {**files, "b/data.pkl": files["a/data.pkl"]})
    refused(path, "2 data.pkl")
    write_archive(path, {**files, "a/constants.pkl": b"", "a/code/m.py": b""})
    refused(path, "TorchScript", "state_dict")


def test_damaged_directories(path, files):
    write_archive(path, files)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a/data/1", b"a/data/0"))
    refused(path, "two files", "a/data/0")
    central = whole.index(b"PK\1\2")
    path.write_bytes(whole[: central + 8] + b"\x09" + whole[central + 9 :])
    refused(path, "encrypted")
    first, second = (whole.index(b"PK\1\2", central + 1), whole.rindex(b"PK\1\2"))
    path.write_bytes(whole[: second + 42] + whole[first + 42 : first + 46] + whole[second + 46 :])
    refused(path, "damaged")  # two storages in one place


def with_directory(whole, directory):
    """An archive with another directory, its size in the record behind it."""
    central, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    size = struct.pack("<I", len(directory))
    return whole[:central] + directory + whole[end : end + 12] + size + whole[end + 16 :]


@pytest.mark.parametrize("place", [1 << 62, 1 << 63, (1 << 64) - 1])
def test_places_that_no_file_has(path, files, place):
    write_archive(path, files)
    whole = path.read_bytes()
    last = whole[whole.rindex(b"PK\1\2") : whole.index(b"PK\5\6")]
    extra = struct.pack("<HHQ", 1, 8, place)  # of zip64, where the field of 32 bits says so
    entry = last[:30] + struct.pack("<H", len(extra)) + last[32:42] + b"\xff" * 4 + last[46:] + extra
    path.write_bytes(with_directory(whole, entry))
    refused(path, "damaged at a/data/1")


def test_a_directory_that_would_fill_memory_is_not_read(path, files):
    write_archive(path, files)
    whole = path.read_bytes()
    last = whole[whole.rindex(b"PK\1\2") : whole.index(b"PK\5\6")]
    path.write_bytes(with_directory(whole, last * 400_000))
    refused(path, "ends early or is damaged")

"""State dicts written for torch, read back with the package's own reader and, where it is installed, with torch."""

import pickletools
import zipfile

import ml_dtypes
import numpy as np
import pytest

from maskdit.interop import torch_file, torch_save
from maskdit.interop.tensors import Contents
from tests.interop.torch_writer import STORAGES, UNTYPED


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
TENSORS = {
    **{name: np.arange(6).reshape(2, 3).astype(dtype_of(name)) for name in STORAGES},
    "big endian": np.arange(6, dtype=">i4"),
    "transposed": GRID.transpose(2, 0, 1),
    "reversed": GRID[:, ::-1, 1:3],
    "broadcast": np.broadcast_to(np.float32(3), (4, 5)),
    "scalar": np.array(2.5, np.float16),
    "empty": np.zeros((3, 0, 2), np.float32),
    "nothing": np.zeros(0, np.int64),
    "näme.0": np.ones((1, 1), np.float64),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "weights.pt"
    torch_save.write(path, TENSORS)
    return path


def test_tensors_come_back_in_their_order(file):
    contents = torch_file.read(file)
    assert contents.placeholders == () and list(contents.tree) == list(TENSORS)
    for name, written in TENSORS.items():
        array = np.asarray(contents.tree[name])
        assert (array.shape, array.dtype) == (written.shape, written.dtype.newbyteorder("=")), name
        np.testing.assert_array_equal(array, written, err_msg=name)


def test_data_are_aligned_and_the_archive_has_what_torch_writes(file):
    with zipfile.ZipFile(file) as archive:
        names = [info.filename for info in archive.infolist()]
        records = {name: archive.read(f"archive/{name}") for name in ("version", "byteorder", ".data/serialization_id")}
        pickled = archive.read("archive/data.pkl")
        assert archive.testzip() is None
    assert names[0] == "archive/data.pkl"
    assert [name for name in names if "/data/" in name] == [f"archive/data/{key}" for key in range(len(TENSORS))]
    assert records["version"] == b"3\n" and records["byteorder"] == b"little"
    assert len(records[".data/serialization_id"]) == 40 and records[".data/serialization_id"].isdigit()
    assert all(tensor.start % 64 == 0 for tensor in torch_file.read(file).tree.values())
    operations = [operation for operation, _, _ in pickletools.genops(pickled)]
    assert max(operation.proto for operation in operations) == 2


def test_the_same_tensors_make_the_same_file(file, tmp_path):
    torch_save.write(tmp_path / "again.pt", TENSORS)
    assert (tmp_path / "again.pt").read_bytes() == file.read_bytes()
    torch_save.write(tmp_path / "other.pt", {**TENSORS, "scalar": np.array(3, np.float16)})
    ids = [zipfile.ZipFile(path).read("archive/.data/serialization_id") for path in (file, tmp_path / "other.pt")]
    assert ids[0] != ids[1]


def test_handles_are_read_one_at_a_time(tmp_path, file):
    torch_save.write(tmp_path / "copy.pt", torch_file.read(file).tree)
    assert (tmp_path / "copy.pt").read_bytes() == file.read_bytes()


def test_large_storages_and_offsets_take_64_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_save, "_ZIP64_LIMIT", 8)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 200)
    torch_save.write(tmp_path / "a.pt", {"a": np.arange(100.0), "b": np.arange(1, 101)})
    tree = torch_file.read(tmp_path / "a.pt").tree
    np.testing.assert_array_equal(tree["b"], np.arange(1, 101))
    assert tree["a"].start % 64 == tree["b"].start % 64 == 0


def test_an_empty_state_dict(tmp_path):
    torch_save.write(tmp_path / "a.pt", {})
    assert torch_file.read(tmp_path / "a.pt") == Contents({})


@pytest.mark.parametrize("name", sorted(UNTYPED))
def test_dtypes_without_a_storage_are_refused_before_writing(tmp_path, name):
    with pytest.raises(ValueError, match=f"w has the dtype {name}, .*float32"):
        torch_save.write(tmp_path / "a.pt", {"w": np.zeros(2).astype(dtype_of(name))})
    assert not (tmp_path / "a.pt").exists()


def test_torch_reads_the_file(file):
    torch = pytest.importorskip("torch")
    state = torch.load(file, weights_only=True)
    assert list(state) == list(TENSORS)
    for name, written in TENSORS.items():
        tensor = state[name]
        assert tuple(tensor.shape) == written.shape and tensor.is_contiguous(), name
        if written.dtype == ml_dtypes.bfloat16:
            assert tensor.dtype == torch.bfloat16
            tensor, written = tensor.float(), written.astype(np.float32)
        np.testing.assert_array_equal(tensor.numpy(), written, err_msg=name)

"""State dicts from files of each kind, found by their content."""

import json
import os
import pickle
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from maskdit.interop import state_file
from maskdit.interop.state_file import open_state, shard_files, weight_files
from maskdit.interop.tensors import FileError, Tensor
from tests.interop.torch_writer import Call, named, write_legacy, write_zip

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(4, dtype=np.int64)


def written(path, header: dict, data: bytes, claimed: int | None = None):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + data)
    return path


def same(state, **expected):
    assert list(state.tensors) == list(expected)
    for name, value in expected.items():
        tensor = state.tensors[name]
        assert isinstance(tensor, Tensor)
        assert (tensor.shape, tensor.dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(np.asarray(tensor), value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "int64", "uint8", "bool", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn],
)
def test_safetensors_come_out_as_they_are(tmp_path, name, dtype):
    value = A.astype(dtype)
    data = value.tobytes()
    kind = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL"}
    kind |= {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
    entries = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": kind[value.dtype.name], "shape": [2, 3], "data_offsets": [0, len(data)]},
        "none": {"dtype": "F32", "shape": [0, 4], "data_offsets": [len(data), len(data)]},
        "one": {"dtype": "F32", "shape": [], "data_offsets": [len(data), len(data) + 4]},
    }
    path = written(tmp_path / name, entries, data + np.float32(7).tobytes())
    state = open_state(path)
    same(state, a=value, none=np.zeros((0, 4), np.float32), one=np.array(7, np.float32))
    assert (state.path, state.within, state.placeholders) == (str(path), "", ())


def test_a_tensor_is_read_each_time_and_is_its_readers_own(tmp_path):
    save_file({"a": A}, tmp_path / "m.safetensors")
    tensor = open_state(tmp_path / "m.safetensors").tensors["a"]
    first = np.asarray(tensor)
    first[:] = 0  # not the file, and not what the next one sees
    np.testing.assert_array_equal(np.asarray(tensor, np.float16), A.astype(np.float16))
    with pytest.raises(ValueError, match="makes a copy"):
        np.asarray(tensor, copy=False)


def test_a_file_that_changes_under_its_reader_is_told(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": A}, path)
    tensor = open_state(path).tensors["a"]
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(FileError, match="a ends early; the file changed"):
        np.asarray(tensor)
    path.unlink()
    with pytest.raises(FileError, match=r"m\.safetensors.* cannot be read"):
        np.asarray(tensor)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    ("within", "expected"),
    [
        (("ema", "model"), "ema"),
        (("model", "ema"), "model"),
        (("opt", "args", "steps", "absent", "model"), "model"),
        ((), ""),
    ],
)
def test_the_weights_of_a_training_checkpoint(tmp_path, write, within, expected):
    args = Call(named("argparse", "Namespace"), ())
    tree = {"model": {"a": A, "n": 1}, "ema": {"a": A + 1}, "opt": {}, "args": args, "steps": 3, "note": "x"}
    write(tmp_path / "m.bin", tree)
    state = open_state(tmp_path / "m.bin", within)
    assert state.within == expected
    assert state.placeholders == ("argparse.Namespace",)
    if expected:
        same(state, a=A + (expected == "ema"))
    else:
        same(state, **{"model.a": A, "ema.a": A + 1})


def test_nested_entries_are_joined(tmp_path):
    write_zip(tmp_path / "m.pt", {"x": {"y": {"a": A}, "list": [A, None, (B, 2.0)]}, 5: B})
    same(open_state(tmp_path / "m.pt"), **{"x.y.a": A, "x.list.0": A, "x.list.2.0": B, "5": B})


def test_two_tensors_of_one_name_are_refused(tmp_path):
    write_zip(tmp_path / "m.pt", {"x": {"a": A}, "x.a": B})
    with pytest.raises(FileError, match=r"two tensors of the name x\.a"):
        open_state(tmp_path / "m.pt")


def test_a_dict_that_holds_itself_or_grows_without_end_is_refused(tmp_path, monkeypatch):
    grown = [A]
    for _ in range(40):
        grown = [grown, grown]
    monkeypatch.setattr(state_file, "_ENTRY_LIMIT", 1000)
    for tree in ({"x": grown}, _own()):
        with pytest.raises(FileError, match="nested without end"):
            state_file._flat(tmp_path, tree)


def _own():
    tree: dict = {"a": A}
    tree["self"] = tree
    return tree


def test_a_pickle_of_numpy_arrays(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"x": {"a": A, "b": B}}))
    same(open_state(tmp_path / "m.pkl"), **{"x.a": A, "x.b": B})


@pytest.mark.parametrize(
    "tree", [{}, {"a": 1, "b": {"c": "text"}}, {"model": {}}], ids=["empty", "numbers", "empty-model"]
)
def test_a_file_without_tensors_is_refused(tmp_path, tree):
    write_zip(tmp_path / "m.pt", tree)
    with pytest.raises(FileError, match=r"m\.pt.* holds no tensors"):
        open_state(tmp_path / "m.pt")


def sharded(folder, shards, **places):
    for name, tensors in shards.items():
        write = save_file if name.endswith(".safetensors") else lambda tensors, path: write_zip(path, tensors)
        write(tensors, folder / name)
    path = folder / "m.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_joined_by_their_index(tmp_path, suffix):
    one, two = f"m-1-of-2.{suffix}", f"m-2-of-2.{suffix}"
    path = sharded(tmp_path, {one: {"a": A}, two: {"model.b": B}}, **{"model.b": two, "a": one})
    state = open_state(path)
    same(state, **{"model.b": B, "a": A})
    assert state.path == str(path)
    same(open_state(tmp_path), **{"model.b": B, "a": A})


def test_shards_that_do_not_fit_are_refused(tmp_path):
    path = sharded(tmp_path, {"1.safetensors": {"a": A}}, a="1.safetensors", b="2.safetensors", c="3.safetensors")
    with pytest.raises(FileError, match=r"do not lie beside it: 2\.safetensors, 3\.safetensors;"):
        open_state(path)
    path = sharded(tmp_path, {}, a="1.safetensors", b="1.safetensors")
    with pytest.raises(FileError, match=r"the shards lack: b in 1\.safetensors"):
        open_state(path)
    path = sharded(tmp_path, {}, a="m.index.json")
    with pytest.raises(FileError, match="is an index itself"):
        open_state(path)


@pytest.mark.parametrize("name", ["../1.bin", "/etc/passwd", "x\\1.bin", "C:1.bin", "..", ".", ""])
def test_a_shard_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(FileError, match="does not lie beside it; this is refused"):
        open_state(sharded(tmp_path, {}, a=name))


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{" + "[" * 100_000, '{"\xff'],
)
def test_json_that_is_no_index_is_told(tmp_path, text):
    path = tmp_path / "m.index.json"
    path.write_text(text, "latin-1")
    for read in (open_state, shard_files):
        with pytest.raises(FileError, match=r"m\.index\.json is no index of a model in shards"):
            read(path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["config.json", "README.md"], []),
        (["d.safetensors", "d.bin", "d.fp16.bin"], ["d.fp16.bin", "d.safetensors"]),
        (["a/d.bin", "b/d.safetensors"], ["a/d.bin", "b/d.safetensors"]),
        (["m-00001-of-00002.bin", "m-00002-of-00002.bin", "m.bin.index.json"], ["m.bin.index.json"]),
        (["m-00001-of-00002.bin", "m-00002-of-00002.bin"], ["m-00001-of-00002.bin", "m-00002-of-00002.bin"]),
        (["m.bin.index.json", "m.safetensors.index.json"], ["m.safetensors.index.json"]),
        (["m.safetensors", "m.safetensors.index.json"], ["m.safetensors"]),
        (["m.pt", "m.pth", "m.ckpt", "m.pkl"], ["m.ckpt", "m.pkl", "m.pt", "m.pth"]),
    ],
)
def test_which_files_hold_a_model(names, expected):
    assert weight_files(names) == expected


def test_a_folder_with_one_file_of_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "inner").mkdir()
    with pytest.raises(FileError, match=r"holds no file of weights .*name one of its folders instead: inner"):
        open_state(tmp_path)
    save_file({"a": A}, tmp_path / "d.safetensors")
    write_zip(tmp_path / "d.bin", {"a": B})
    same(open_state(tmp_path), a=A)
    write_zip(tmp_path / "e.bin", {"a": B})
    with pytest.raises(FileError, match=r"several files of weights: d\.safetensors, e\.bin; name one"):
        open_state(tmp_path)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (entry(), b"1234", "ends after .* bytes of at least .*half a download"),
        (entry(), b"123456789", "damaged safetensors"),
        (entry(shape=(3,)), b"12345678", "damaged safetensors"),
        (entry(offsets=(4, 12)), b"x" * 12, "damaged safetensors"),
        (entry(dtype="F9"), b"12345678", "damaged safetensors"),
        (entry(dtype="F8_E8M0", shape=(8,)), b"12345678", "a has the dtype F8_E8M0; BOOL"),
        ({"__metadata__": {"a": "b"}}, b"", "holds no tensors"),
    ],
)
def test_damaged_safetensors_are_told(tmp_path, header, data, says):
    with pytest.raises(FileError, match=f"m.safetensors.*{says}"):
        open_state(written(tmp_path / "m.safetensors", header, data))


@pytest.mark.parametrize("data", [b"1234", b""])
def test_a_safetensors_header_without_bounds_is_told(tmp_path, data):
    deep = json.loads("[" * 500 + "]" * 500)
    for header in ({"a": entry()["a"] | {"x": deep}}, {"a": deep}):
        text = json.dumps(header).replace("[" * 500, "[" * 100_000).replace("]" * 500, "]" * 100_000).encode()
        (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        with pytest.raises(FileError, match=r"m\.safetensors"):
            open_state(tmp_path / "m.safetensors")
    with pytest.raises(FileError, match=r"m\.safetensors has a header of 60000000 bytes"):
        open_state(written(tmp_path / "m.safetensors", entry(), data, claimed=60_000_000))


@pytest.mark.parametrize("shape", [(1,) * 40, (0, 1 << 62), (1 << 30, 0, 1 << 30)])
def test_shapes_that_no_array_has_are_told(tmp_path, shape):
    size = 0 if 0 in shape else 4
    with pytest.raises(FileError, match=r"m\.safetensors.* its shape"):
        open_state(written(tmp_path / "m.safetensors", entry(shape=shape, offsets=(0, size)), bytes(size)))


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "a" * 2000, "\u202eleft"])
@pytest.mark.parametrize("kind", ["safetensors", "pt", "pkl", "index.json"])
def test_names_that_a_terminal_would_obey_are_refused(tmp_path, kind, name):
    path = tmp_path / f"m.{kind}"
    if kind == "safetensors":
        save_file({name: A}, path)
    elif kind == "pt":
        write_zip(path, {name[:1000]: {name[1000:]: A}})
    elif kind == "pkl":
        path.write_bytes(pickle.dumps({"x": {name[:1000]: {name[1000:]: A}}}))
    else:
        sharded(tmp_path, {}, **{name: "1.safetensors"})
    with pytest.raises(FileError, match="not a line of up to 1000 printable letters") as caught:
        open_state(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_shards_whose_names_a_terminal_would_obey_are_refused(tmp_path):
    with pytest.raises(FileError, match="does not lie beside it") as caught:
        open_state(sharded(tmp_path, {}, a="\x1b[31m.bin"))
    assert str(caught.value).isprintable()


def test_a_large_file_that_begins_as_json_is_not_read(tmp_path):
    with open(tmp_path / "m.pt", "wb") as file:
        file.write(b"{")
        file.truncate(1 << 32)  # a hole
    with pytest.raises(FileError, match=r"m\.pt begins as an index .* at most 33554432 bytes"):
        open_state(tmp_path / "m.pt")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.pt")
    with pytest.raises(FileError, match=r"m\.pt' is a pipe"):
        open_state(tmp_path / "m.pt")


def test_safetensors_cut_in_the_header_are_told(tmp_path):
    with pytest.raises(FileError, match="half a download"):
        open_state(written(tmp_path / "m.safetensors", entry(), b"", claimed=5000))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x93NUMPY\x01\x00", "of no known kind"),
        (b"text", "of no known kind"),
    ],
)
def test_other_files_are_told(tmp_path, content, says):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(FileError, match=rf"m\.pt.*{says}"):
        open_state(tmp_path / "m.pt")


def test_paths_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    with pytest.raises(FileError, match=r"no file .*m\.pt"):
        open_state(tmp_path / "m.pt")

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(FileError, match="cannot be read: Permission denied"):
        open_state(tmp_path)


def test_reading_all_tensors_needs_the_memory_of_one(tmp_path):
    save_file({f"t{i}": np.zeros((4, 1024, 1024), np.float32) for i in range(6)}, tmp_path / "m.safetensors")
    code = """
import resource, sys
import numpy as np
from maskdit.interop.state_file import open_state
state = open_state(sys.argv[1])
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10
before = peak()
for tensor in state.tensors.values():
    assert not np.asarray(tensor).any()
print(peak() - before)
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the peak is told by Linux alone")
    run = [sys.executable, "-c", code, str(tmp_path / "m.safetensors")]
    grown = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert grown < 1.5 * (16 << 20)

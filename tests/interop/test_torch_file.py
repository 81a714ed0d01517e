"""Torch files of both layouts, sound, damaged and malicious, read without torch."""

import argparse
import collections
import contextlib
import functools
import pickle
import random
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from maskdit.interop import torch_file, unpickling
from maskdit.interop.tensors import FileError, Tensor
from tests.interop import attacks
from tests.interop.torch_writer import (
    MAGIC,
    STORAGES,
    UNTYPED,
    Call,
    Parameter,
    View,
    named,
    pickled,
    state_dict,
    write_archive,
    write_legacy,
    write_zip,
)

WRITERS = {"zip": write_zip, "legacy": write_legacy}
LAYOUTS = pytest.mark.parametrize("layout", list(WRITERS))


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def equal(read, written):
    array = np.asarray(read)
    assert isinstance(read, Tensor)
    assert (array.shape, array.dtype) == (read.shape, read.dtype) == (written.shape, written.dtype)
    assert array.flags.c_contiguous and array.tobytes() == np.ascontiguousarray(written).tobytes()


def tensors(tree):
    if isinstance(tree, Tensor):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for value in inner for tensor in tensors(value)]


def opcodes(path, layout, pickle_bytes):
    """A torch file whose pickle is given."""
    if layout == "zip":
        write_archive(path, {"a/data.pkl": pickle_bytes, "a/data/0": bytes(8), "a/version": b"3\n"})
    else:
        parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {})]
        path.write_bytes(b"".join([*parts, pickle_bytes, pickle.dumps([], 2)]))


refused = functools.partial(attacks.refused, torch_file.read)


@LAYOUTS
@pytest.mark.parametrize("name", [*STORAGES, *sorted(UNTYPED)])
def test_all_dtypes_come_back(tmp_path, layout, name):
    array = np.arange(6).reshape(2, 3).astype(dtype_of(name))
    WRITERS[layout](tmp_path / "a.pt", {"w": array})
    contents = torch_file.read(tmp_path / "a.pt")
    assert contents.placeholders == ()
    equal(contents.tree["w"], array)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "complex64", "bool", "int64"])
def test_big_endian_files_come_back(tmp_path, name):
    array = np.arange(6).reshape(2, 3).astype(dtype_of(name))
    write_zip(tmp_path / "a.pt", {"w": array}, byteorder="big")
    equal(torch_file.read(tmp_path / "a.pt").tree["w"], array)


@LAYOUTS
def test_views_parameters_and_the_rest_of_a_checkpoint(tmp_path, layout):
    base = np.arange(24, dtype=np.float32)
    model = {
        "base": base,
        "again": base,
        "part": View(base, 4, (2, 3), (3, 1)),
        "transposed": View(base, 0, (6, 4), (1, 6)),
        "column": View(base, 1, (4,), (6,)),
        "expanded": View(base, 5, (3, 2), (0, 1)),
        "scalar": View(base, 7, (), ()),
        "one": View(base, 7, (1,), (1 << 61,)),
        "empty": np.zeros((0, 4), np.float16),
        "parameter": Parameter(np.ones(3, np.float32)),
    }
    extra = {"epoch": 3, "lr": 0.5, "names": ["a", ("b", None, True)], "size": Call(named("torch", "Size"), ((2, 3),))}
    WRITERS[layout](tmp_path / "a.pt", {"model": state_dict(model), **extra})
    tree = torch_file.read(tmp_path / "a.pt").tree
    assert {key: tree[key] for key in extra} == {**extra, "size": (2, 3)}
    assert list(tree["model"]) == list(model)
    expected = {
        "base": base,
        "again": base,
        "part": base[4:10].reshape(2, 3),
        "transposed": base.reshape(4, 6).T,
        "column": base[1::6],
        "expanded": np.stack([base[5:7]] * 3),
        "scalar": base[7:8].reshape(()),
        "one": base[7:8],
        "empty": np.zeros((0, 4), np.float16),
        "parameter": np.ones(3, np.float32),
    }
    for name, array in expected.items():
        equal(tree["model"][name], array)
    assert np.asarray(tree["model"]["part"], np.float64).dtype == np.float64


def test_other_constructors_of_tensors(tmp_path):
    array, utils = np.arange(4, dtype=np.float32), "torch._utils"
    (function, args) = named(utils, "_rebuild_parameter"), (array, True, collections.OrderedDict())
    made = {
        "typed": Call(named("torch._tensor", "_rebuild_from_type_v2"), (function, named("torch", "Tensor"), args, {})),
        "state": Call(named(utils, "_rebuild_parameter_with_state"), (*args, {"tag": 1})),
        "default": Call(named("collections", "defaultdict"), (named("__builtin__", "list"),)),
        "pairs": Call(named("collections", "OrderedDict"), ([["w", array]],)),  # as Python 2 wrote it
        "kind": named("torch", "bfloat16"),
    }
    write_zip(tmp_path / "a.pt", made)
    contents = torch_file.read(tmp_path / "a.pt")
    for tensor in (contents.tree["typed"], contents.tree["state"], contents.tree["pairs"]["w"]):
        equal(tensor, array)
    assert contents.tree["default"] == {} and contents.tree["kind"] == ml_dtypes.bfloat16
    assert contents.placeholders == ("torch.Tensor", "__builtin__.list")


def test_a_tensor_is_read_when_asked_for_and_nothing_is_kept(tmp_path):
    size = 1 << 22
    write_zip(tmp_path / "a.pt", {"a": np.ones(size // 4, np.float32), "b": np.ones(size // 4, np.float32)})
    tracemalloc.start()
    try:
        tree = torch_file.read(tmp_path / "a.pt").tree
        assert tracemalloc.get_traced_memory()[1] < size / 8
        for name in ("a", "b", "a"):
            assert np.asarray(tree[name]).sum() == size // 4
        assert size < tracemalloc.get_traced_memory()[1] < 1.1 * size
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="copy"):
        np.asarray(tree["a"], copy=False)
    (tmp_path / "a.pt").write_bytes(b"shorter")
    with pytest.raises(FileError, match="shorter"):
        np.asarray(tree["a"])
    (tmp_path / "a.pt").unlink()
    with pytest.raises(FileError, match=r"a\.pt"):
        np.asarray(tree["a"])


# --- what is not built ---


@LAYOUTS
def test_other_objects_are_listed_and_inert(tmp_path, layout):
    args = argparse.Namespace(lr=np.float64(1e-4), model="DiT-XL/2")
    WRITERS[layout](tmp_path / "a.pt", {"w": np.ones(2, np.float32), "args": args})
    contents = torch_file.read(tmp_path / "a.pt")
    assert contents.placeholders[0] == "argparse.Namespace" and "numpy.dtype" in contents.placeholders
    assert contents.tree["args"].name == "argparse.Namespace" and not isinstance(contents.tree["args"], Tensor)


def test_names_in_messages_obey_no_file(tmp_path):
    array, name = np.ones(2, np.float32), "\n\x1b[2J" + "a" * 1000
    write_zip(tmp_path / "a.pt", {name: View(array, 2, (1,), (1,))})
    refused(tmp_path / "a.pt", "??[2Ja")
    opcodes(tmp_path / "a.pt", "zip", attacks.stack_glob("os", name) + b".")
    assert torch_file.read(tmp_path / "a.pt").placeholders[0].startswith("os.??[2Jaaa")
    write_archive(tmp_path / "a.pt", {name: b""})
    refused(tmp_path / "a.pt", "??[2Ja")


@LAYOUTS
def test_a_tensor_within_an_object_is_an_error_unless_it_stands_elsewhere_too(tmp_path, layout):
    array = np.ones(2, np.float32)
    for holder in (argparse.Namespace(w=array), Call(named("omegaconf", "DictConfig"), ({"w": [array]},))):
        WRITERS[layout](tmp_path / "a.pt", {"here": {"args": holder}})
        name = "argparse.Namespace" if isinstance(holder, argparse.Namespace) else "omegaconf.DictConfig"
        refused(tmp_path / "a.pt", name, "here.args", "state_dict")
        WRITERS[layout](tmp_path / "a.pt", {"w": array, "args": holder})
        equal(torch_file.read(tmp_path / "a.pt").tree["w"], array)
    odd = Call(named("torch._utils", "_rebuild_parameter_with_state"), (array, True, {}, {"w": np.zeros(3)}))
    WRITERS[layout](tmp_path / "a.pt", {"p": odd})
    refused(tmp_path / "a.pt")


@LAYOUTS
@pytest.mark.parametrize("attack", [*attacks.LISTED, *attacks.REFUSED])
def test_malicious_pickles_run_nothing(tmp_path, layout, attack):
    with attacks.trap(tmp_path) as command:
        name, code = attacks.LISTED.get(attack) or (None, attacks.REFUSED[attack])
        opcodes(tmp_path / "a.pt", layout, b"\x80\x02}" + attacks.text("x") + code(command) + b"s.")
        if name is None:
            refused(tmp_path / "a.pt")
        else:
            assert name in torch_file.read(tmp_path / "a.pt").placeholders


@pytest.mark.parametrize(
    "call",
    [
        Call(named("torch._tensor", "_rebuild_from_type_v2"), (named("os", "system"), 0, ("touch hit",), {})),
        Call(named("torch._utils", "_rebuild_parameter"), (named("os", "system"), True, {})),
        Call(named("torch._utils", "_rebuild_tensor_v2"), (named("os", "system"), 0, (1,), (1,), False, {})),
        Call(named("torch", "Size"), (["1"],)),
        Call(named("torch", "FloatStorage"), (8,)),
        Call(named("torch", "float32"), ()),
        np.zeros((1,) * 33, np.float32),
    ],
)
def test_arguments_of_what_is_built_are_checked(tmp_path, call):
    write_zip(tmp_path / "a.pt", {"x": call})
    refused(tmp_path / "a.pt")


# --- what would take all memory or all time ---


@LAYOUTS
@pytest.mark.parametrize("case", [*attacks.HUGE, *attacks.HARMLESS])
def test_huge_requests_end_at_once(tmp_path, layout, case):
    opcodes(tmp_path / "a.pt", layout, b"\x80\x04" + (attacks.HUGE | attacks.HARMLESS)[case] + b".")
    tracemalloc.start()
    try:
        if case in attacks.HARMLESS:
            assert torch_file.read(tmp_path / "a.pt").tree == {}
        else:
            refused(tmp_path / "a.pt")
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()


def test_a_pickle_of_endless_steps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_STEPS", 1000)
    write_zip(tmp_path / "a.pt", {"losses": [0.5] * 1100})
    refused(tmp_path / "a.pt", "steps")
    monkeypatch.undo()
    assert len(torch_file.read(tmp_path / "a.pt").tree["losses"]) == 1100


@LAYOUTS
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (4, (1,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (-2, -2), (1, 1)),
        (0, (1 << 40,), (0,)),
        (0, (1 << 20, 1 << 20), (0, 0)),
        (0, (1 << 62, 1 << 62), (0, 0)),
        (0, (0, 1 << 61), (0, 0)),
        (1 << 60, (1,), (1,)),
        (0, (2, 2), (1,)),
        (0, (2.0,), (1,)),
        (0, [2], [1]),
    ],
)
def test_views_outside_their_storage_are_refused(tmp_path, layout, offset, size, stride):
    WRITERS[layout](tmp_path / "a.pt", {"here": {"w": View(np.ones(4, np.float32), offset, size, stride)}})
    refused(tmp_path / "a.pt")


def test_storages_shorter_than_declared_are_refused(tmp_path):
    data, _ = pickled({"here": np.ones(4, np.float32)})
    for files in ({}, {"a/data/0": bytes(15)}, {"b/data/0": bytes(16)}):
        write_archive(tmp_path / "a.pt", {"a/data.pkl": data, **files})
        refused(tmp_path / "a.pt", "here", "storage")
    write_archive(tmp_path / "a.pt", {"a/data.pkl": data.replace(b"K\x04", b"\x8a\x08" + bytes(7) + b"\x10", 1)})
    refused(tmp_path / "a.pt")  # 2**60 entries


# --- files that are damaged or something else ---


@LAYOUTS
def test_a_cut_or_damaged_file_is_an_error_or_a_file(tmp_path, layout):
    tree = {"model": state_dict({"w": np.ones((2, 3), np.float32), "v": np.arange(3)}), "args": argparse.Namespace(a=1)}
    path = tmp_path / "a.pt"
    WRITERS[layout](path, tree)
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 13), *range(len(whole) - 30, len(whole))]:
        path.write_bytes(whole[:cut])
        refused(path)
    choose = random.Random(0)
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(choose.randint(1, 3)):
            broken[choose.randrange(len(whole))] = choose.randrange(256)
        path.write_bytes(broken)
        with contextlib.suppress(FileError):
            for tensor in tensors(torch_file.read(path).tree):
                np.asarray(tensor)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty", "again"]),
        (b"<!DOCTYPE html><html>", ["web page", "again"]),
        (b'\n<?xml version="1.0"?><Error>', ["web page", "again"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", ["git-lfs", "pull"]),
        (b"GIF89a" + bytes(600), ["no file of torch.save"]),
        (bytes(257) + b"ustar" + bytes(300), ["tar"]),
        (pickle.dumps({"a": 1}), ["no file of torch.save"]),
        (pickle.dumps(MAGIC, 2) + pickle.dumps(7, 2), ["version"]),
    ],
)
def test_other_files_are_told_as_such(tmp_path, data, words):
    (tmp_path / "a.pt").write_bytes(data)
    refused(tmp_path / "a.pt", *words)


def test_paths_that_cannot_be_read(tmp_path):
    refused(tmp_path / "missing.pt", "no file")
    refused(tmp_path, "cannot be read")


@LAYOUTS
def test_files_that_torch_itself_writes(tmp_path, layout):
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0)
    kinds = [name for name in STORAGES if name != "complex128"]
    tree = {
        "model": torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict(),
        "kinds": {name: base.to(getattr(torch, name)) for name in kinds},
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "views": [
            base,
            base[3:9].reshape(2, 3),
            base.reshape(3, 4).t(),
            base[::5],
            base[2],
        ],
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(tree, tmp_path / "a.pt", _use_new_zipfile_serialization=layout == "zip")
    contents = torch_file.read(tmp_path / "a.pt")
    assert contents.placeholders == ("argparse.Namespace",)

    def same(read, written):
        if isinstance(written, dict):
            assert list(read) == list(written)
            for key, value in written.items():
                same(read[key], value)
        elif isinstance(written, list):
            for one, other in zip(read, written, strict=True):
                same(one, other)
        elif isinstance(written, torch.Tensor):
            assert str(written.dtype) == f"torch.{read.dtype.name}"
            assert np.asarray(read).astype(np.complex128).tolist() == written.detach().to(torch.complex128).tolist()

    same(contents.tree, tree)

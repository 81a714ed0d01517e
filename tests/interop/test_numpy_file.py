"""Pickles of numpy arrays, sound, damaged and malicious, read without numpy's unpickling."""

import argparse
import collections
import contextlib
import functools
import pickle
import random
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from flax.core import FrozenDict

from maskdit.interop import numpy_file
from maskdit.interop.tensors import FileError, Tensor
from tests.interop import attacks
from tests.interop.attacks import glob, text

PROTOCOLS = pytest.mark.parametrize("protocol", range(6))
KINDS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", ">f4", ">i8"]


def equal(read, written):
    assert isinstance(read, np.ndarray) and isinstance(read, Tensor)
    assert read.shape == written.shape and read.flags.c_contiguous
    assert read.dtype == written.dtype.newbyteorder("=") and read.dtype.isnative
    assert np.array_equal(read, written)


refused = functools.partial(attacks.refused, numpy_file.read)


def dump(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@PROTOCOLS
def test_arrays_of_all_kinds_come_back(tmp_path, protocol):
    arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in KINDS}
    arrays["bf16"] = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    arrays["fp8"] = np.arange(6).astype(ml_dtypes.float8_e4m3fn)
    arrays["fortran"] = np.asfortranarray(np.arange(24.0).reshape(2, 3, 4))
    arrays["strided"] = np.arange(24.0)[::5]
    arrays["empty"] = np.zeros((0, 3), np.float32)
    arrays["scalar"] = np.array(2.5)
    arrays["same"] = arrays["f4"]
    contents = numpy_file.read(dump(tmp_path / "a.pkl", arrays, protocol))
    assert list(contents.tree) == list(arrays) and contents.placeholders == ()
    for name, array in arrays.items():
        equal(contents.tree[name], array)


@PROTOCOLS
def test_the_containers_around_them(tmp_path, protocol):
    array = np.ones((2, 2), np.float32)
    tree = {
        "VGG16_0": {"Conv_0": {"kernel": array, "bias": array[0]}},
        "ordered": collections.OrderedDict(a=[array, (1, None, "é", 2.5, True)]),
        "number": np.float32(0.5),
        "kind": np.dtype("int16"),
        3: b"bytes",
    }
    read = numpy_file.read(dump(tmp_path / "a.pkl", tree, protocol)).tree
    equal(read["VGG16_0"]["Conv_0"]["kernel"], array)
    equal(read["ordered"]["a"][0], array)
    assert read["ordered"]["a"][1] == (1, None, "é", 2.5, True)
    assert (read["number"], read["kind"], read[3]) == (0.5, np.int16, b"bytes")


def test_flax_trees_and_the_modules_of_numpy_1(tmp_path):
    path = dump(tmp_path / "a.pkl", FrozenDict({"a": {"b": np.arange(3), "c": np.int64(7)}}), 2)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))
    contents = numpy_file.read(path)
    equal(contents.tree["a"]["b"], np.arange(3))
    assert contents.tree["a"]["c"] == 7 and contents.placeholders == ()


def test_a_pickle_of_python_2(tmp_path):
    # {'w': array([1, 2], uint8)}, whose bytes are a string there
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nt"
    dtype = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
    (tmp_path / "a.pkl").write_bytes(b"(dS'w'\n" + array + dtype + b"I00\nS'\\x01\\xff'\ntbs.")
    equal(numpy_file.read(tmp_path / "a.pkl").tree["w"], np.array([1, 255], np.uint8))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([{"a": 1}], object), ["Python objects"]),
        (np.array(["text"]), ["numbers"]),
        (np.array([b"bytes"]), ["numbers"]),
        (np.zeros(2, [("a", "f4")]), ["numbers"]),
        (np.array(["2020-01-01"], "M8[s]"), ["numbers"]),
        (argparse.Namespace(w=np.ones(2)), ["argparse.Namespace", "here"]),
    ],
)
def test_arrays_that_are_not_built(tmp_path, value, words):
    refused(dump(tmp_path / "a.pkl", {"here": value}), *words)


def test_other_objects_are_listed_and_inert(tmp_path):
    options = argparse.Namespace(lr=np.float64(0.1), kind=np.dtype("f4"))
    contents = numpy_file.read(dump(tmp_path / "a.pkl", {"w": np.ones(2), "args": options}))
    assert contents.placeholders == ("argparse.Namespace",)
    assert contents.tree["args"].name == "argparse.Namespace"


CORE = "numpy._core.multiarray"
KNOWN = {
    "class state": lambda c: glob("numpy", "ndarray") + b"}" + text("hit") + b"K\x01sb",
    "class call": lambda c: glob("numpy", "ndarray") + text(c) + b"\x85R",
    "other class": lambda c: glob(CORE, "_reconstruct") + glob("os", "system") + b"K\x00\x85C\x01b\x87R",
    "number": lambda c: glob(CORE, "scalar") + glob("os", "system") + text(c) + b"\x86R",
    "encoding": lambda c: glob("_codecs", "encode") + text(c) + text("zip") + b"\x86R",
    "frozen": lambda c: glob("flax.core.frozen_dict", "FrozenDict") + glob("os", "system") + b"\x85R",
}
"""What is known, called or changed in another way than numpy does."""


@pytest.mark.parametrize("attack", [*attacks.LISTED, *attacks.REFUSED, *KNOWN])
def test_malicious_pickles_run_nothing(tmp_path, attack):
    with attacks.trap(tmp_path) as command:
        name, code = attacks.LISTED.get(attack) or (None, (attacks.REFUSED | KNOWN)[attack])
        (tmp_path / "a.pkl").write_bytes(b"\x80\x02}" + text("x") + code(command) + b"s.")
        if name is None:
            refused(tmp_path / "a.pkl")
        else:
            assert name in numpy_file.read(tmp_path / "a.pkl").placeholders


def array(shape, data):
    """The opcodes of an array of bytes."""
    lengths = b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", length) for length in shape) + b"t"
    dtype = glob("numpy", "dtype") + text("u1") + b"\x85R"
    made = glob(CORE, "_reconstruct") + glob("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    return made + b"(K\x01" + lengths + dtype + b"\x89" + b"C" + bytes([len(data)]) + data + b"tb"


HUGE = {
    "shape": array((1 << 60,), b"1234"),
    "shapes": array((1 << 40, 1 << 40), b"1234"),
    "negative": array((-2, -2), b"1234"),
    "no entries": array((0, 1 << 62, 1 << 62), b""),
    "axes": array((1,) * 40, b"1"),
    "too short": array((3,), b"12"),
    "too long": array((3,), b"1234"),
    **attacks.HUGE,
}


@pytest.mark.parametrize("case", [*HUGE, *attacks.HARMLESS])
def test_huge_requests_end_at_once(tmp_path, case):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + (HUGE | attacks.HARMLESS)[case] + b".")
    tracemalloc.start()
    try:
        if case in attacks.HARMLESS:
            assert numpy_file.read(tmp_path / "a.pkl").tree == {}
        else:
            refused(tmp_path / "a.pkl")
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()


@PROTOCOLS
def test_a_cut_or_damaged_file_is_an_error_or_a_file(tmp_path, protocol):
    path = dump(tmp_path / "a.pkl", {"w": np.ones((2, 3), np.float32), "v": np.arange(3), "n": np.float64(1)}, protocol)
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 7), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        refused(path)
    choose = random.Random(protocol)
    for _ in range(100):
        broken = bytearray(whole)
        for _ in range(choose.randint(1, 3)):
            broken[choose.randrange(len(whole))] = choose.randrange(256)
        path.write_bytes(broken)
        with contextlib.suppress(FileError):
            numpy_file.read(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty"]),
        (b"<html>", ["web page"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["git-lfs"]),
        (b"PK\3\4" + bytes(40), ["zip"]),
        (b"\x93NUMPY\x01\x00" + bytes(40), ["pickle"]),
    ],
)
def test_other_files_are_told_as_such(tmp_path, data, words):
    (tmp_path / "a.pkl").write_bytes(data)
    refused(tmp_path / "a.pkl", *words)


def test_paths_that_cannot_be_read(tmp_path):
    refused(tmp_path / "missing.pkl", "no file")
    refused(tmp_path, "cannot be read")

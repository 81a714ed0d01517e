"""Bounds on the time and memory that a pickle may ask of its readers."""

import time
import tracemalloc

import pytest

from maskdit.interop import numpy_file, torch_file, unpickling
from maskdit.interop.tensors import FileError
from tests.interop import attacks
from tests.interop.torch_writer import write_archive

READERS = {"numpy": numpy_file, "torch": torch_file}


def write(path, reader, opcodes):
    data = b"\x80\x04" + opcodes + b"."
    if reader == "torch":
        write_archive(path, {"a/data.pkl": data})
    else:
        path.write_bytes(data)
    return path


def values(tree):
    """What the innermost list holds."""
    while isinstance(tree, dict):
        (tree,) = tree.values()
    return tree


@pytest.mark.parametrize("case", list(attacks.REPEATED))
def test_arguments_that_are_used_again_and_again_are_paid_for(tmp_path, monkeypatch, case):
    monkeypatch.setattr(unpickling, "MAX_STEPS", 200_000)  # less to count
    reader, says, opcodes = attacks.REPEATED[case]
    path = write(tmp_path / "a.pt", reader, opcodes)
    tracemalloc.start()
    start = time.process_time()
    try:
        if says:
            with pytest.raises(FileError, match=rf"a\.pt.*{says}"):
                READERS[reader].read(path)
        else:
            assert len(values(READERS[reader].read(path).tree)) in (4000, 20_000)
        assert time.process_time() - start < 10  # seconds
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def test_one_array_named_twice_is_made_once(tmp_path):
    tree = numpy_file.read(write(tmp_path / "a.pkl", *attacks.REPEATED["one array"][::2])).tree
    assert all(array is tree[0] for array in tree) and not tree[0].any() and tree[0].shape == (1 << 18,)


@pytest.mark.parametrize("error", [MemoryError, RecursionError, OverflowError])
@pytest.mark.parametrize("reader", list(READERS))
def test_memory_that_does_not_suffice_is_told_with_the_file(tmp_path, monkeypatch, reader, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(READERS[reader], "finished", fail)
    with pytest.raises(FileError, match=rf"a\.pt.*{error.__name__}"):
        READERS[reader].read(write(tmp_path / "a.pt", reader, b"}"))

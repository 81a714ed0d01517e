"""TensorFlow.js models, whole, quantised, damaged and malicious."""

import json

import numpy as np
import pytest

from maskdit.interop.state_file import open_state
from maskdit.interop.tensors import FileError

RNG = np.random.default_rng(0)
TENSORS = {
    "a/kernel": RNG.standard_normal((3, 5)).astype(np.float32),
    "step": np.array(7, np.int32),
    "flags": np.array([True, False, True]),
    "empty": np.zeros((0, 4), np.float32),
    "b/bias": RNG.standard_normal(6).astype(np.float32),
}


def write_model(folder, tensors, shard=10, quantised=()):
    """Writes a model; gives its `model.json` as a dict.

    Args:
      folder: is made.
      tensors: name -> array, of the values or, for names in `quantised`, as stored.
      shard: bytes of a shard; the cuts fall anywhere.
      quantised: name -> entry `quantization`; its values are float32 where it names no `original_dtype`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, weights, how = b"", [], dict(quantised)
    for name, array in tensors.items():
        kind = how.get(name, {}).get("original_dtype", "float32") if name in how else array.dtype.name
        weights.append({"name": name, "shape": list(array.shape), "dtype": kind})
        weights[-1] |= {"quantization": how[name]} if name in how else {}
        data += array.tobytes()
    pieces = [data[start : start + shard] for start in range(0, len(data), shard)]
    paths = [f"group1-shard{i + 1}of{len(pieces)}.bin" for i in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        (folder / path).write_bytes(piece)
    model = {"format": "layers-model", "weightsManifest": [{"paths": paths, "weights": weights}]}
    (folder / "model.json").write_text(json.dumps(model))
    return model


@pytest.mark.parametrize("shard", [1, 10, 1000])
@pytest.mark.parametrize("name", ["", "model.json"])
def test_tensors_are_read_across_shards(tmp_path, shard, name):
    write_model(tmp_path, TENSORS, shard)
    state = open_state(tmp_path / name)
    assert list(state.tensors) == list(TENSORS) and state.path == str(tmp_path / "model.json")
    for key, array in TENSORS.items():
        tensor = state.tensors[key]
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(np.asarray(tensor), array)


def test_groups_of_shards_of_their_own(tmp_path):
    first = write_model(tmp_path, {"a": np.float32([1, 2])})["weightsManifest"][0]
    (tmp_path / first["paths"][0]).rename(tmp_path / "other.bin")
    model = write_model(tmp_path, {"b": np.float32([3])})
    model["weightsManifest"].append(first | {"paths": ["other.bin"]})
    (tmp_path / "model.json").write_text(json.dumps(model))
    tensors = open_state(tmp_path).tensors
    assert {name: np.asarray(tensor).tolist() for name, tensor in tensors.items()} == {"b": [3.0], "a": [1.0, 2.0]}


def test_quantised_tensors(tmp_path):
    stored = {
        "u1": np.array([[0, 255], [7, 1]], np.uint8),
        "whole": np.array([1, 2, 3], np.uint8),
        "u2": np.array([0, 65535, 300], np.uint16),
        "half": np.array([0.5, -2], np.float16),
    }
    how = {
        "u1": {"dtype": "uint8", "scale": 0.02, "min": -1.5, "original_dtype": "float32"},
        "whole": {"dtype": "uint8", "scale": 1.3, "min": -2, "original_dtype": "int32"},
        "u2": {"dtype": "uint16", "scale": 1e-4, "min": -3.0},
        "half": {"dtype": "float16"},
    }
    write_model(tmp_path, stored, quantised=how)
    read = {name: np.asarray(tensor) for name, tensor in open_state(tmp_path).tensors.items()}
    np.testing.assert_allclose(read["u1"], [[-1.5, 3.6], [-1.36, -1.48]], rtol=1e-6)
    np.testing.assert_array_equal(read["whole"], np.array([-1, 1, 2], np.int32))
    np.testing.assert_allclose(read["u2"], [-3, 3.5535, -2.97], rtol=1e-6)
    np.testing.assert_array_equal(read["half"], np.float32([0.5, -2]))
    assert [array.dtype.name for array in read.values()] == ["float32", "int32", "float32", "float32"]


def broken(key, value):
    """Sets a field of the first tensor."""
    return lambda group: group["weights"][0].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken("dtype", "string"), "a/kernel cannot be read: it has the dtype string; float32, int32, bool are read"),
        (broken("dtype", None), "it has the dtype None"),
        (broken("shape", [3, -5]), "a size that is no number from 0 up"),
        (broken("shape", "35"), "its shape is no tuple"),
        (broken("shape", [3, 6]), r"tells of 103 bytes of tensors, and its shards \(the last is .*\) hold 91"),
        (broken("shape", [1 << 40]), "tells of .* bytes"),
        (broken("quantization", {"dtype": "uint4"}), "its quantisation is .*uint4.*uint8, uint16, float16 of numbers"),
        (broken("quantization", "uint8"), "lacks a scale and a min that are numbers"),
        (broken("quantization", {"dtype": "uint8", "scale": "1", "min": 0}), "lacks a scale and a min"),
        (broken("quantization", {"dtype": "uint8", "scale": float("nan"), "min": 0}), "lacks a scale and a min"),
        (broken("name", "b/bias"), "two tensors of the name b/bias"),
        (broken("name", "a\nb"), "which is not a line of up to 1000"),
        (broken("name", 3), r"is no TensorFlow\.js model: it should be JSON"),
        (lambda group: group.pop("paths"), r"is no TensorFlow\.js model"),
        (lambda group: group.update(paths=[]), "tells of 91 bytes of tensors, and its shards hold 0"),
        (lambda group: group.update(weights=[]), r"is no TensorFlow\.js model"),
        (lambda group: group["paths"].append("../evil.bin"), r"names the shard '\.\./evil\.bin'.*this is refused"),
        (lambda group: group["paths"].append("/etc/passwd"), "names the shard '/etc/passwd'"),
        (lambda group: group["paths"].append("more.bin"), "needs these shards, .* beside it: more.bin; fetch them too"),
    ],
)
def test_bad_models_are_sentences(tmp_path, change, message):
    model = write_model(tmp_path, TENSORS)
    change(model["weightsManifest"][0])
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(FileError, match=message):
        open_state(tmp_path)


def test_cut_files_are_sentences(tmp_path):
    model = write_model(tmp_path, TENSORS)
    last = tmp_path / model["weightsManifest"][0]["paths"][-1]
    state = open_state(tmp_path)
    last.write_bytes(b"")
    with pytest.raises(FileError, match="b/bias ends early; the file changed since it was opened"):
        np.asarray(state.tensors["b/bias"])
    with pytest.raises(FileError, match="hold 90, such as half a download"):
        open_state(tmp_path)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text[:-5])
    with pytest.raises(FileError, match=r"is no TensorFlow\.js model"):
        open_state(tmp_path)

import numpy as np
import pytest

from maskdit.data.embeddings import Embeddings
from maskdit.data.source import DataError

RNG = np.random.default_rng(0)
TEXT = RNG.standard_normal((5, 3, 4)).astype(np.float16)
POOLED = RNG.standard_normal((5, 6)).astype(np.float32)
WHOLE = {
    "text": TEXT,
    "pooled": POOLED,
    "null_text": np.full((3, 4), 0.5, np.float32),
    "null_pooled": np.full(6, 0.25, np.float32),
    "aesthetic": np.arange(5, dtype=np.float64),
    "names": np.array(["a", "b", "c", "d", "e"]),
}


def written(path, **arrays):
    np.savez(path, **arrays)
    return Embeddings(str(path))


def test_a_file_of_everything(tmp_path):
    texts = written(tmp_path / "text.npz", **WHOLE)
    row = texts.read(3)
    assert row.keys() == texts.arrays.keys() == {"text", "pooled", "scalar/aesthetic"}
    np.testing.assert_array_equal(row["text"], TEXT[3])
    np.testing.assert_array_equal(row["pooled"], POOLED[3])
    assert row["scalar/aesthetic"] == 3 and texts.names == list("abcde") and len(texts) == 5
    assert {name: (array.shape, str(array.dtype)) for name, array in row.items()} == texts.arrays
    assert texts.null["null_text"].dtype == TEXT.dtype and (texts.null["null_pooled"] == 0.25).all()


def test_one_array_of_any_name_is_the_text(tmp_path):
    np.save(tmp_path / "text.npy", TEXT)
    for texts in (written(tmp_path / "text.npz", words=TEXT), Embeddings(str(tmp_path / "text.npy"))):
        assert texts.arrays == {"text": ((3, 4), "float16")} and not texts.null
        np.testing.assert_array_equal(texts.read(1)["text"], TEXT[1])
        assert texts.names[4] == "text 4"


def test_what_the_whole_text_says_can_stand_alone(tmp_path):
    assert written(tmp_path / "text.npz", pooled=POOLED).arrays == {"pooled": ((6,), "float32")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooled": POOLED[:4]}, "float32 .4, 6. as pooled.*: the numbers of records differ; text embeddings are one"),
        ({"pooled": TEXT}, "pooled has 3 axes"),
        ({"pooled": POOLED.astype(np.float64)}, "pooled is float64"),
        ({"words": TEXT}, "words has 3 axes"),
        ({"width": np.arange(5)}, "width is int64"),
        ({"null_text": np.zeros((2, 4), np.float32)}, "null_text does not go with text;"),
        ({"null_pooled": np.full(6, np.nan, np.float32)}, "null_pooled is not finite"),
        ({"names": np.arange(5.0)}, "names is float64"),
        ({"pooled": None}, "null_pooled does not go with pooled that is not there"),
        ({"names": np.array(["a", None, "c", "d", "e"])}, "cannot be read as a .npy or .npz file"),
        (dict.fromkeys(("text", "pooled", "aesthetic")), "there is no text;"),
    ],
)
def test_other_arrays_are_refused(tmp_path, change, message):
    arrays = {name: array for name, array in (WHOLE | change).items() if array is not None}
    with pytest.raises(DataError, match=message):
        len(written(tmp_path / "text.npz", **arrays))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds nothing"):
        len(written(tmp_path / "text.npz"))

import dataclasses

import numpy as np
import pytest

from maskdit.data.emoji import Emoji
from maskdit.data.folder import Folder
from maskdit.data.hashed_words import HashedWords
from maskdit.data.loader import Loader
from maskdit.data.source import DataError


def test_equal_words_are_equal_vectors_and_nothing_else():
    words = HashedWords(tokens=4, width=2048)
    text = words.embed("A cat, a Dog.")["text"]
    np.testing.assert_array_equal(text[0], text[2])
    near = text @ text.T / 2048
    np.testing.assert_allclose(np.diag(near), 1, atol=0.1)
    assert np.abs(near[np.ix_([0, 1, 3], [0, 1, 3])] - np.diag(np.diag(near)[[0, 1, 3]])).max() < 0.1
    stays = [[-0.6151878, -0.7037778, 0.8915823]]  # what a network has learned of a word holds in every version
    np.testing.assert_allclose(HashedWords(1, 3).embed("cat")["text"], stays, atol=1e-6)


def test_short_and_long_captions():
    short, long = (HashedWords(tokens=3, width=5).embed(caption) for caption in ("one two", "one two three four"))
    assert not short["text"][2].any()
    np.testing.assert_allclose(short["pooled"], short["text"][:2].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(long["pooled"], long["text"].mean(axis=0), rtol=1e-6)
    assert not any(array.any() for array in HashedWords(tokens=3, width=5).embed("").values())


def test_batches_of_captioned_pictures(tmp_path):
    loader = Loader(Emoji("val"), size=16, flip=False, shuffle=False, text=HashedWords(6, 8))
    with loader.batches(0, 4) as stream:
        batch = next(stream)
    for row in range(4):
        for name, array in HashedWords(6, 8).embed(Emoji("val").caption(row)).items():
            np.testing.assert_array_equal(batch[name][row], array)
    with pytest.raises(DataError, match=r"Folder has none: set data.text to a file"):
        len(dataclasses.replace(loader, source=Folder(str(tmp_path))).records)
    with pytest.raises(DataError, match="1 or more tokens and width; got 0 and 8"):
        HashedWords(0, 8)

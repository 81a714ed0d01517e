"""Copies of training images among samples are found, and shown beside what they were copied from."""

import numpy as np
import pytest
from PIL import Image

from maskdit.evals.memorisation import check_memorisation
from tests.features import Other, images, loader, network


def test_copies_are_found_and_shown(tmp_path):
    training = images(23)
    samples = np.concatenate([images(6, seed=9), training[[4, 20]]])
    path = str(tmp_path / "near.png")
    found = check_memorisation(samples, network(Other), loader(), loader(40, 5, broken=(3,)), path, shown=3, batch=8)
    assert (found.samples, found.held_out) == (8, 39) and found.share >= 2 / 8
    assert found.median > 0 and found.near > 0
    with Image.open(path) as file:
        shown = np.asarray(file.convert("RGB"))
    assert len(shown) == 3 * (8 + 2) + 2
    # the two copies come first; the first neighbour of each is its original, the same pixels
    left = shown[2:10, 2:10]
    assert any((left == training[number]).all() for number in (4, 20))
    places = [x for x in range(10, shown.shape[1] - 8) if (shown[2:10, x : x + 8] == left).all()]
    assert len(places) == 1
    with pytest.raises(ValueError, match="3 training images, too few for 5 neighbours"):
        check_memorisation(samples, network(Other), loader(3), loader(8, 5), path, batch=8)

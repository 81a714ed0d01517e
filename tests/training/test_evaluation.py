"""The pictures of a run: which labels and texts the samples have."""

import contextlib
import types

import numpy as np

from maskdit.contracts import Cond
from maskdit.training.evaluation import sample_grid


class Painter:
    """Paints the number of each image's group, and keeps what it was asked for."""

    def __init__(self, **fields):
        self.vocabulary = {"group": ("a", "b", "c")}
        self.task = types.SimpleNamespace(
            network=types.SimpleNamespace(classes={"group": 3}, **fields),
            condition=lambda batch: Cond(labels={"group": batch["group"]}, text=batch["text"]),
        )

    def sample(self, labels, *, count, seed, text=None):
        self.asked = labels, text
        shades = [self.vocabulary["group"].index(x) if isinstance(x, str) else x for x in labels["group"]]
        return np.stack([np.full((2, 2, 3), shade, np.uint8) for shade in shades])


class Records:
    """Four held-out records with texts."""

    @contextlib.contextmanager
    def ordered(self, batch, limit):
        assert batch == limit == 4
        yield iter([{"group": np.array([2, 0, 1, 2]), "text": np.arange(24.0).reshape(4, 2, 3)}])


def test_a_model_of_labels_shows_all_of_them():
    model = Painter()
    sample_grid(model, 6, seed=0, loader=Records())
    assert (sorted(model.asked[0]["group"]), model.asked[1]) == (list("aabbcc"), None)


def test_a_model_of_texts_shows_those_of_held_out_records():
    model = Painter(text_width=3)
    sheet = sample_grid(model, 4, seed=0, loader=Records())
    labels, text = model.asked
    assert labels == {"group": [2, 0, 1, 2]} and text.text.shape == (4, 2, 3)
    assert (sheet[2, 2, 0], sheet[2, 6, 0]) == (2, 0)

"""Whether a generator repeats its training images: its samples beside the training images nearest to them."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from maskdit.data.loader import Loader
from maskdit.evals import neighbours, pictures
from maskdit.evals.collector import features
from maskdit.evals.network import FeatureNetwork
from maskdit.training import distributed

NEAREST = 5
"""Training images shown for each sample."""


def check_memorisation(
    samples: np.ndarray,
    network: FeatureNetwork,
    training: Loader,
    held_out: Loader,
    path: str,
    *,
    shown: int = 16,
    batch: int = 64,
) -> neighbours.Memorisation:
    """Draws samples with the nearest training images, and holds their distances against those of held-out images.

    The training set is read once; memory does not depend on its size, nor on that of held-out images but for features.

    Args:
      samples: uint8 `[n, H, W, 3]`.
      network: in whose features images are near.
      training: the images that the generator was trained on.
      held_out: images of the same kind that it was not trained on.
      path: the PNG file: a row for each of the `shown` samples that lie nearest to a training image.
      shown: rows of the picture.
      batch: images at once.

    Raises:
      ValueError: for fewer training images than are shown for each sample.
    """
    others = (images for images, _ in _images(held_out, batch) if len(images))
    queries = np.concatenate([*features(network, itertools.chain((samples,), others), batch)])
    found = neighbours.nearest(queries, _seen(training, network, batch), NEAREST)
    ours = neighbours.Neighbours(found.distances[: len(samples)], found.numbers[: len(samples)])
    theirs = neighbours.Neighbours(found.distances[len(samples) :], found.numbers[len(samples) :])
    rows = np.argsort(ours.distances[:, 0], kind="stable")[:shown]
    near = _by_number(training, ours.numbers[rows])
    if distributed.is_first():
        pictures.save_png(path, neighbours.picture(samples[rows], near))
    return neighbours.memorisation(ours, theirs)


def _images(loader: Loader, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Readable images and their numbers, batch by batch."""
    with loader.once(batch, range(len(loader.records))) as batches:
        for one in batches:
            kept = (one["index"] >= 0) & np.array([not said for said in one["unreadable"]])
            yield one["image"][kept], one["index"][kept]


def _seen(loader: Loader, network: FeatureNetwork, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    numbers: list[np.ndarray] = []

    def chunks() -> Iterator[np.ndarray]:
        for images, own in _images(loader, batch):
            if len(images):
                numbers.append(own)
                yield images

    for found in features(network, chunks(), batch):
        yield found, numbers.pop(0)


def _by_number(loader: Loader, numbers: np.ndarray) -> np.ndarray:
    """The images of these numbers, uint8 `[n, k, H, W, 3]`."""
    with loader.once(numbers.shape[1], numbers.reshape(-1).tolist()) as batches:
        rows: list[Any] = [one["image"] for one in batches]
    return np.stack(rows)

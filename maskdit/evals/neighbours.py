"""Which training images lie nearest to samples: do samples repeat what the model was trained on?

The Euclidean distance between features of a network to those of the nearest training image, as in the checks for
memorised images of Meehan et al. 2020 (arXiv 2004.05675) and of Stein et al. 2023 (arXiv 2306.04675). A distance says
nothing by itself: held-out images have nearest training images too, and theirs are the yardstick.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from maskdit.evals.pictures import grid

_ROWS = 1024
"""Queries at once: of their products with a batch of training images all are held."""
NEAREST = 0.01
"""The share of held-out images, the nearest of all, that samples are held against."""


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The nearest training images of some images, nearest first.

    Attributes:
      distances: `[n, k]` float64.
      numbers: `[n, k]` int64, of the training images.
    """

    distances: np.ndarray
    numbers: np.ndarray


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """How near samples lie to the training images, beside how near held-out images do.

    Attributes:
      median: of the samples' distances to their nearest training image.
      held_out_median: of those of held-out images.
      near: within this distance of a training image lie the nearest 1 % of held-out images (interpolated).
      share: of the samples that lie within it: about 0.01 of a model that repeats no more than chance does.
      held_out_share: of the held-out images; far above 0.01 where the data hold copies of themselves.
      samples, held_out: how many there are.
    """

    median: float
    held_out_median: float
    near: float
    share: float
    held_out_share: float
    samples: int
    held_out: int

    def __str__(self) -> str:
        return (
            f"nearest training image: median distance {self.median:.4g} of {self.samples} samples, "
            f"{self.held_out_median:.4g} of {self.held_out} held-out images\n"
            f"within {self.near:.4g} of one, as the nearest {100 * NEAREST:g} % of held-out images are: "
            f"{100 * self.share:.1f} % of samples, {100 * self.held_out_share:.1f} % of held-out images"
        )


def nearest(queries: np.ndarray, batches: Iterable[tuple[np.ndarray, np.ndarray]], k: int) -> Neighbours:
    """The `k` nearest training images of each query, exactly; of equal distances those of the lower numbers.

    Products of float64 find the candidates. Their distances are then taken from differences: `|u|^2 - 2 uv + |v|^2`
    loses the digits of near copies, which are what is looked for. Memory is that of one batch besides the result.

    Args:
      queries: features `[n, D]`.
      batches: features `[b, D]` of training images with the images' numbers `[b]`; each image once, in any order.
      k: how many.

    Raises:
      ValueError: for features of other shapes or that are not finite, and for less than `k` training images.
    """
    queries = _checked(queries, "queries")
    if k < 1 or not len(queries):
        raise ValueError(f"neighbours are 1 or more, of 1 or more queries; got k={k} and {len(queries)} queries")
    distances = np.full((len(queries), k), np.inf)  # squared until the end
    numbers = np.full((len(queries), k), np.iinfo(np.int64).max)
    count = 0
    for features, given in batches:
        features, given = _checked(features, "training features"), np.asarray(given)
        if features.shape[1] != queries.shape[1]:
            raise ValueError(
                f"queries have {queries.shape[1]} features and training images {features.shape[1]}: take both from one "
                "network"
            )
        if given.shape != features.shape[:1] or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"{len(features)} training images have as many whole numbers; got {given.dtype} {list(given.shape)}"
            )
        count += len(features)
        for start in range(0, len(queries), _ROWS):
            rows = slice(start, start + _ROWS)
            _merge(queries[rows], features, given, distances[rows], numbers[rows])
    if count < k:
        raise ValueError(f"there are {count} training images, too few for {k} neighbours of an image: ask for fewer")
    return Neighbours(np.sqrt(distances), numbers)


def memorisation(samples: Neighbours, held_out: Neighbours) -> Memorisation:
    """Holds the distances of samples against those of held-out images to the same training images.

    Args:
      samples: the neighbours of samples.
      held_out: those of images that the model was not trained on.
    """
    ours, others = samples.distances[:, 0], held_out.distances[:, 0]
    near = np.quantile(others, NEAREST)
    return Memorisation(
        median=float(np.median(ours)),
        held_out_median=float(np.median(others)),
        near=float(near),
        share=float(np.mean(ours <= near)),
        held_out_share=float(np.mean(others <= near)),
        samples=len(ours),
        held_out=len(others),
    )


def picture(samples: np.ndarray, neighbours: np.ndarray, padding: int = 2) -> np.ndarray:
    """Lays out a row for each sample: the sample, a gap, its nearest training images.

    Args:
      samples: uint8 `[n, H, W, 3]`.
      neighbours: uint8 `[n, k, H, W, 3]`, nearest first.
      padding: white pixels around and between images.

    Returns:
      uint8 `[n * (H + padding) + padding, width, 3]` for `maskdit.evals.pictures.save_png`.

    Raises:
      ValueError: for other types, and for neighbours that do not belong to the samples.
    """
    samples, neighbours = np.asarray(samples), np.asarray(neighbours)
    if neighbours.ndim != 5 or samples.shape != neighbours[:, :1].reshape(-1, *neighbours.shape[2:]).shape:
        raise ValueError(
            f"samples [n, H, W, 3] have neighbours [n, k, H, W, 3] of their size; got {list(samples.shape)} and "
            f"{list(neighbours.shape)}"
        )
    left = grid(samples, columns=1, padding=padding)
    right = grid(neighbours.reshape(-1, *neighbours.shape[2:]), columns=neighbours.shape[1], padding=padding)
    gap = np.full((len(left), max(samples.shape[2] // 4, 2 * padding), 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _merge(queries: np.ndarray, features: np.ndarray, given: np.ndarray, best: np.ndarray, numbers: np.ndarray) -> None:
    """Puts training images that are nearer than the worst of `best` `[n, k]` (squared) into it and into `numbers`."""
    lengths, others = np.square(queries).sum(1), np.square(features).sum(1)
    rough = lengths[:, None] - 2 * queries @ features.T + others  # [n, b]
    # what rounding may have done to a sum of D products of such sizes
    slack = 8 * queries.shape[1] * np.finfo(np.float64).eps * (lengths[:, None] + others)
    worst = best[:, -1]
    if len(given) > best.shape[1]:  # the k-th of this batch alone already bounds what can be among the nearest
        worst = np.minimum(worst, np.partition(rough + slack, best.shape[1] - 1, axis=1)[:, best.shape[1] - 1])
    close = rough - slack <= worst[:, None]
    for row in np.flatnonzero(close.any(1)):
        taken = np.flatnonzero(close[row])
        exact = np.square(features[taken] - queries[row]).sum(1)
        all_distances = np.concatenate([best[row], exact])
        all_numbers = np.concatenate([numbers[row], given[taken]])
        order = np.lexsort((all_numbers, all_distances))[: best.shape[1]]
        best[row], numbers[row] = all_distances[order], all_numbers[order]


def _checked(features: np.ndarray, what: str) -> np.ndarray:
    """Features as float64, in which differences of float32 lose nothing that matters."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"{what} are [images, features]; got {list(features.shape)}")
    if not np.isfinite(features).all():
        raise ValueError(f"{what} hold numbers that are not finite: check the images they were made from")
    return features

"""Monge Inception Distance: sliced Wasserstein distance of two sets of features.

Berthet et al. 2026 (arXiv 2605.06797): along unit directions u of the D-dimensional features, with samples of both sets
sorted by their projection,

    MIND = 3 D mean_u mean_j (sort(X u)_j - sort(Y u)_j)^2

Both sets have one size: the larger is cut at random. Of two sets that differ by a shift it is, on average over
directions, 3 times the shift's square. All in float64. torch-fidelity takes float32, and draws directions by torch's
generator; here NumPy's does, and numbers differ as those of two of its seeds do.
"""

import numpy as np
from numpy.typing import ArrayLike

from maskdit.evals.feature_sets import ROWS, pair

PROJECTIONS, SEED = 1000, 2020
_AT_ONCE = 64  # directions, so that memory is that of so many columns


def mind(real: ArrayLike, fake: ArrayLike, *, projections: int = PROJECTIONS, seed: int = SEED) -> float:
    """The distance along random directions.

    Args:
      real, fake: features `[N, D]` and `[M, D]`.
      projections: number of directions.
      seed: of the directions, and of the rows that the larger set keeps.

    Raises:
      ValueError: for fewer than one direction, two widths, no rows, and features that are not finite.
    """
    real, fake = pair(real, fake)
    count = min(len(real), len(fake))
    random = np.random.default_rng((seed, 1))  # another stream than the directions'
    real, fake = (
        part if len(part) == count else part[np.sort(random.choice(len(part), count, replace=False))]
        for part in (real, fake)
    )
    return mind_along(real, fake, unit_directions(projections, real.shape[1], seed))


def mind_along(real: ArrayLike, fake: ArrayLike, directions: ArrayLike) -> float:
    """The distance of two sets of one size, `[N, D]` both, along given unit directions `[P, D]`.

    Raises:
      ValueError: for sets of two sizes or widths, directions of another, and features that are not finite.
    """
    real, fake = pair(real, fake)
    given = np.asarray(directions, np.float64)
    if len(real) != len(fake):
        raise ValueError(f"both sets have one size here, got {len(real)} and {len(fake)}: cut the larger")
    if given.ndim != 2 or not len(given) or given.shape[1] != real.shape[1]:
        raise ValueError(f"directions are [P, {real.shape[1]}] for these features, got {list(given.shape)}")
    total = 0.0
    for start in range(0, len(given), _AT_ONCE):
        some = given[start : start + _AT_ONCE].T  # [D, p]
        apart = _sorted_projections(real, some) - _sorted_projections(fake, some)  # [N, p]
        total += float(np.square(apart).sum())
    return 3 * real.shape[1] * total / (len(real) * len(given))


def _sorted_projections(rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    # in blocks: float64 copies of large float32 sets would be made whole otherwise
    found = [rows[start : start + ROWS].astype(np.float64) @ directions for start in range(0, len(rows), ROWS)]
    return np.sort(np.concatenate(found), axis=0)


def unit_directions(count: int, width: int, seed: int = SEED) -> np.ndarray:
    """Directions drawn uniformly from the unit sphere, `[count, width]`, float64.

    Raises:
      ValueError: for fewer than one.
    """
    if count < 1:
        raise ValueError(f"there is 1 direction or more, got {count}")
    drawn = np.random.default_rng(seed).standard_normal((count, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

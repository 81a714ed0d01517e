"""How far a Fréchet distance lies above 0 for want of samples alone (Chong and Forsyth 2020, arXiv 1911.07023)."""

import numpy as np

from maskdit.evals.frechet import Gaussian

_MANY = 8  # samples for each feature from which the expansion is within a few percent
_BLOCK = 4096  # rows drawn at once


def bias(reference: Gaussian, count: int, seed: int = 0) -> float:
    """The distance of `count` draws of the reference's own normal distribution from it: on average, or of one such set.

    With many draws it is the expectation to first order in `1 / count`. In the basis of the eigenvalues `l`, the mean
    adds `sum l / count`, and the covariance, whose entries vary by `l_i l_j (1 + [i = j]) / count`, through the second
    derivative of the distance `sum_ij l_i l_j (1 + [i = j]) / (2 count (l_i + l_j))`. With fewer, where that no longer
    holds, a set is drawn. Features are not normal, and generators are not the reference: it is a figure to read others
    against, not to take off them.

    Args:
      reference: mean and covariance.
      count: number of draws, 2 or more.
      seed: of a drawn set.
    """
    values = np.maximum(np.linalg.eigvalsh(reference.cov), 0.0)
    values = values[values > 0]
    if not len(values):
        return 0.0
    if count >= _MANY * reference.width:
        pairs = np.outer(values, values)
        pairs[np.diag_indices(len(values))] *= 2
        return float(values.sum() / count + (pairs / (values[:, None] + values)).sum() / (2 * count))
    rng, deviation = np.random.default_rng(seed), np.sqrt(values)
    total, outer = np.zeros(len(values)), np.zeros((len(values), len(values)))
    for start in range(0, count, _BLOCK):
        rows = rng.standard_normal((min(_BLOCK, count - start), len(values))) * deviation
        total += rows.sum(0)
        outer += rows.T @ rows
    mean = total / count
    cov = (outer - count * np.outer(mean, mean)) / (count - 1)
    # one covariance is diagonal: the distance takes one eigenproblem, of values alone
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(deviation[:, None] * cov * deviation), 0.0))
    return float(mean @ mean + np.trace(cov) + values.sum() - 2 * roots.sum())

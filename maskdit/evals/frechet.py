"""Fréchet distance between two sets of features, each taken for a Gaussian.

Dowson and Landau 1982 (J. Multivariate Analysis 12:3); of Inception's features it is the FID of Heusel et al. 2017
(arXiv 1706.08500), of activities at places Nash et al.'s sFID (2021, arXiv 2103.03841):

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr sqrt(S1 S2)

Few samples: the distance is too large, by about `c / N` (Chong and Forsyth 2020, arXiv 1911.07023), so that distances
from different numbers of samples must not be compared: two sets of N and M samples of one distribution are on average
`tr S (1 / N + 1 / M)` apart by their means alone, and by about `D / 4` times that again by their covariances where all
D variances are equal. Fewer samples than features make the covariance singular, which is no hindrance here.

Where published tools differ:
- Means: pytorch-fid takes float64 ones; ADM's evaluator and torch-fidelity those of float32 sums
  (`mean_dtype="float32"`), which of 50,000 samples are right to about 1e-5. Covariances are float64 in all.
- The trace: pytorch-fid and ADM take the matrix square root of `S1 S2`, torch-fidelity, torchmetrics and dgm-eval's
  fast variant the roots of its eigenvalues (`torch_fidelity`). Both are the number of `frechet_distance`, up to the
  rounding of a product that is not symmetric; for singular covariances that is about 1e-7 of the trace.
"""

import contextlib
import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from maskdit.evals.feature_sets import ROWS, checked

_ASYMMETRY = 1e-5  # of the largest entry; files may hold float32


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and covariance of features.

    Attributes:
      mean: `[D]`, kept in float64.
      cov: `[D, D]`, of divisor `N - 1`, kept in float64.
      count: number of samples N; None where a file does not say.

    Raises:
      ValueError: for shapes that do not fit, fewer than 2 samples, entries that are not finite, and a matrix that is
        not symmetric.
    """

    mean: np.ndarray
    cov: np.ndarray
    count: int | None = None

    def __post_init__(self) -> None:
        mean, cov = np.asarray(self.mean, np.float64), np.asarray(self.cov, np.float64)
        if mean.ndim != 1 or not len(mean) or cov.shape != (len(mean), len(mean)):
            raise ValueError(f"a Gaussian is a mean [D] and a covariance [D, D]; got {mean.shape} and {cov.shape}")
        if self.count is not None and self.count < 2:
            raise ValueError(f"a covariance needs 2 samples or more, got {self.count}")
        bad = int((~np.isfinite(mean)).sum() + (~np.isfinite(cov)).sum())
        if bad:
            raise ValueError(f"{bad} entries of a mean and covariance of {len(mean)} features are not finite")
        if np.abs(cov - cov.T).max() > _ASYMMETRY * np.abs(cov).max():
            raise ValueError(f"a covariance is symmetric; this one of {len(mean)} features is not")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "cov", cov)

    @property
    def width(self) -> int:
        """Number of features D."""
        return len(self.mean)


def gaussian(features: ArrayLike, mean_dtype: str = "float64") -> Gaussian:
    """The Gaussian of features `[N, D]`; besides them, memory is a few `[D, D]` and blocks of rows.

    Args:
      features: one row a sample.
      mean_dtype: `float64` (pytorch-fid, EDM), or `float32` for means of sums in float32 (ADM, torch-fidelity). The
        covariance is about the float64 mean in both.

    Raises:
      ValueError: for fewer than 2 rows, entries that are not finite, and another `mean_dtype`.
    """
    if mean_dtype not in ("float64", "float32"):
        raise ValueError(f"means are taken in float64 or float32, got '{mean_dtype}'")
    rows = checked("features", features, least=2)
    centre = np.asarray(np.mean(rows, axis=0, dtype=np.float64))
    cov = np.zeros((rows.shape[1],) * 2)
    for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS] - centre
        cov += block.T @ block
    mean = centre if mean_dtype == "float64" else np.asarray(np.mean(rows.astype(np.float32, copy=False), axis=0))
    return Gaussian(mean, cov / (len(rows) - 1), len(rows))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The distance by a symmetric eigenproblem: no complex number appears.

    Right to about 1e-12 of the traces; where both covariances are singular, or nearly, to 1e-8.

    With `S1 = A A^T`, `A [D, r]` of rank r, `S1 S2` has the non-zero eigenvalues of the symmetric `A^T S2 A [r, r]`.
    The set of fewer samples gives A, and r is below its number of samples; of a regular covariance it is the Cholesky
    factor.

    Raises:
      ValueError: for Gaussians of two widths.
    """
    _one_width(a, b)
    if (b.count or np.inf) < (a.count or np.inf):
        a, b = b, a
    factor = _factor(a)  # [D, r]
    product = factor.T @ b.cov @ factor  # [r, r]
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(product), 0.0)) if factor.size else np.zeros(0)
    return max(_assembled(a, b, float(roots.sum())), 0.0)


def torch_fidelity(a: Gaussian, b: Gaussian) -> float:
    """torch-fidelity's route: real parts of the roots of the eigenvalues of `S1 S2`, which are found as complex ones.

    With means of float32 it is torch-fidelity's number. Slower than `frechet_distance`, whose number it is but for
    rounding; may come out a little below 0.

    Raises:
      ValueError: for Gaussians of two widths.
    """
    _one_width(a, b)
    values = np.linalg.eigvals(a.cov @ b.cov)
    return _assembled(a, b, float(np.sqrt(values.astype(np.complex128)).real.sum()))


def rank_deficient(count: int, width: int) -> bool:
    """Whether so few samples make the covariance of so many features singular: its rank is below their number."""
    return count <= width


def _factor(a: Gaussian) -> np.ndarray:
    """A matrix `A [D, r]` with `A A^T` the covariance, r its rank."""
    if not rank_deficient(a.count or a.width + 1, a.width):
        with contextlib.suppress(np.linalg.LinAlgError):  # of features that never vary
            return np.linalg.cholesky(a.cov)  # half the work of eigenvectors
    values, vectors = np.linalg.eigh(a.cov)
    # what is below the rounding of the largest eigenvalue is rounding
    kept = values > values[-1] * a.width * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _assembled(a: Gaussian, b: Gaussian, root_trace: float) -> float:
    apart = a.mean - b.mean
    return float(apart @ apart + np.trace(a.cov) + np.trace(b.cov) - 2 * root_trace)


def _one_width(a: Gaussian, b: Gaussian) -> None:
    if a.width != b.width:
        raise ValueError(f"one set has {a.width} features and the other {b.width}: both come from one network")

"""Kernel distance between two sets of features: unbiased squared maximum mean discrepancy.

Bińkowski et al. 2018 (arXiv 1801.01401) on Inception's features: KID. With kernel k, n and m samples

    MMD^2 = sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 mean_{ij} k(x_i, y_j)

It has no bias, so that sets of few samples may be compared, and may be below 0. KID is the mean over random subsets
of both sets; papers often report it times 1000. All tools give the population deviation over subsets; they differ in
which rows they draw (`RULES`) and in precision.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from maskdit.evals.feature_sets import pair

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020
"""Defaults of all tools; the seed is torch-fidelity's."""
_BLOCK = 2048


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """The kernel `(gamma x.y + coef0)^degree` of Bińkowski et al.

    Attributes:
      degree: of the polynomial.
      gamma: None for one over the width of the features.
      coef0: what is added.
    """

    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0

    def __post_init__(self) -> None:
        if self.degree < 1 or (self.gamma is not None and self.gamma <= 0):
            raise ValueError(f"degree is 1 or more and gamma positive or None; got {self.degree} and {self.gamma}")

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Kernel of all pairs: `[n, D]` and `[m, D]` -> `[n, m]`, in the features' precision."""
        gamma = 1 / x.shape[1] if self.gamma is None else self.gamma
        return (x @ y.T * float(gamma) + float(self.coef0)) ** self.degree


@dataclasses.dataclass(frozen=True)
class Rbf:
    """The kernel `exp(-|x - y|^2 / (2 sigma^2))`; torch-fidelity's other one, and that of CMMD (arXiv 2401.09603).

    Attributes:
      sigma: its width, in units of the features.
    """

    sigma: float = 10.0

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"sigma is positive, got {self.sigma}")

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Kernel of all pairs: `[n, D]` and `[m, D]` -> `[n, m]`, in the features' precision."""
        squared = np.square(x).sum(1)[:, None] - 2 * (x @ y.T) + np.square(y).sum(1)
        return np.exp(squared / (-2 * float(self.sigma) ** 2))


Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """Rows of both sets that make up each subset: `fake` and `real`, both `[subsets, size]`."""

    fake: np.ndarray
    real: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a tool takes KID.

    Attributes:
      first: whose rows it draws first, `fake` or `real`.
      permutation: whether a subset is the head of a permutation of all rows, or a choice among them.
      precise: whether the kernel is taken in float64, or in the precision of the features.
    """

    first: str
    permutation: bool
    precise: bool

    def draws(self, fake: int, real: int, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = SEED) -> Draws:
        """Rows for sets of so many samples, without replacement within a subset.

        Sets smaller than a subset are taken whole, as dgm-eval does; torch-fidelity and torchmetrics refuse them.

        Raises:
          ValueError: for fewer than one subset, or fewer than 2 rows in one.
        """
        size = min(size, fake, real)
        if subsets < 1 or size < 2:
            raise ValueError(f"KID takes 1 subset or more of 2 rows or more; got {subsets} of {size}")
        random = np.random.RandomState(seed)
        counts = {"fake": fake, "real": real}
        order = ("fake", "real") if self.first == "fake" else ("real", "fake")
        found: dict[str, list[np.ndarray]] = {name: [] for name in order}
        for _ in range(subsets):
            for name in order:
                rows = random.permutation(counts[name])[:size] if self.permutation else None
                found[name].append(random.choice(counts[name], size, replace=False) if rows is None else rows)
        return Draws(np.stack(found["fake"]), np.stack(found["real"]))


RULES = {
    "torch-fidelity": Rule(first="fake", permutation=False, precise=False),
    "torchmetrics": Rule(first="real", permutation=True, precise=False),
    "dgm-eval": Rule(first="real", permutation=False, precise=True),
}
"""Tool -> its rule. torch-fidelity is called as `(generated, real)`. torchmetrics' rows come from torch's generator;
here they are drawn the same way from NumPy's, and numbers differ as those of two of its runs do."""


def kid(
    fake: ArrayLike,
    real: ArrayLike,
    *,
    rule: str = "torch-fidelity",
    kernel: Kernel = Polynomial(),
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> tuple[float, float]:
    """Mean and population deviation over subsets of the squared discrepancy of samples and data.

    Args:
      fake: features of samples `[N, D]`.
      real: features of data `[M, D]`.
      rule: a name of `RULES`.
      kernel: `Polynomial` or `Rbf`.
      subsets, size: how many subsets, and rows in each; a set of fewer rows is taken whole.
      seed: of the rows.

    Raises:
      ValueError: for an unknown rule, fewer than 2 rows, two widths, and features that are not finite.
    """
    if rule not in RULES:
        raise ValueError(f"KID is taken by the rule of {', '.join(RULES)}; got '{rule}'")
    real, fake = pair(real, fake, least=2)
    values = per_subset(fake, real, RULES[rule].draws(len(fake), len(real), subsets, size, seed), rule, kernel)
    return float(values.mean()), float(values.std())


def per_subset(
    fake: np.ndarray, real: np.ndarray, draws: Draws, rule: str = "torch-fidelity", kernel: Kernel = Polynomial()
) -> np.ndarray:
    """Squared discrepancy of each subset `[subsets]`, float64; sums of the kernel are in float64 in any rule."""
    dtype = np.dtype(np.float64) if RULES[rule].precise else np.result_type(fake, real, np.float32)
    values = []
    for fakes, reals in zip(draws.fake, draws.real, strict=True):
        x, y = fake[fakes].astype(dtype), real[reals].astype(dtype)
        within = _off_diagonal(kernel(x, x)) + _off_diagonal(kernel(y, y))
        cross = kernel(x, y).mean(dtype=np.float64)
        values.append(within / (len(x) * (len(x) - 1)) - 2 * cross)
    return np.asarray(values)


def mmd(fake: ArrayLike, real: ArrayLike, kernel: Kernel = Polynomial(), block: int = _BLOCK) -> float:
    """The squared discrepancy of the whole sets in float64, without draws; memory is that of one block of pairs.

    Time grows with the square of the number of samples: at 50,000 of 2048 features it is minutes of many cores.

    Args:
      fake, real: features `[N, D]` and `[M, D]`; N and M may differ.
      kernel: `Polynomial` or `Rbf`.
      block: rows taken at once.

    Raises:
      ValueError: as `kid` does.
    """
    real, fake = pair(real, fake, least=2)
    total = sum(_within(x, kernel, block) / (len(x) * (len(x) - 1)) for x in (fake, real))
    cross = 0.0
    for x in _blocks(fake, block):
        cross += sum(float(kernel(x, y).sum()) for y in _blocks(real, block))
    return total - 2 * cross / (len(fake) * len(real))


def _within(x: np.ndarray, kernel: Kernel, block: int) -> float:
    """Sum of the kernel over pairs of two rows of one set; blocks above the diagonal count twice."""
    total = 0.0
    for start in range(0, len(x), block):
        rows = x[start : start + block].astype(np.float64)
        total += _off_diagonal(kernel(rows, rows))
        total += sum(2 * float(kernel(rows, others).sum()) for others in _blocks(x[start + block :], block))
    return total


def _blocks(x: np.ndarray, block: int) -> Iterator[np.ndarray]:
    return (x[start : start + block].astype(np.float64) for start in range(0, len(x), block))


def _off_diagonal(values: np.ndarray) -> float:
    return float(values.sum(dtype=np.float64) - np.trace(values, dtype=np.float64))

"""Inception score of class logits: `exp(E_x KL(p(y|x) || p(y)))`, Salimans et al. 2016 (arXiv 1606.03498).

It lies between 1 and the number of classes. All functions take logits `[N, C]`, run on the host and give the mean and
deviation over splits of the samples. Tools differ in the order of samples, the splits, the deviation and the precision:
state the name of the function beside any number. Of Inception they take logits without the bias of the last layer.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from maskdit.evals.feature_sets import checked

SPLITS, SEED, SPLIT_SIZE = 10, 2020, 5000


def torch_fidelity(
    logits: ArrayLike, splits: int = SPLITS, *, shuffle: bool = True, seed: int = SEED
) -> tuple[float, float]:
    """torch-fidelity's: shuffled once; split i holds rows `i N // splits` to `(i + 1) N // splits`.

    The deviation is the population's.

    Args:
      logits: `[N, C]`.
      splits: number of splits.
      shuffle: whether rows are taken in the order of `order(N, seed)`, or as they come.
      seed: of the order.

    Raises:
      ValueError: for fewer rows than splits, and logits that are not finite.
    """
    rows = _rows(logits, splits)
    rows = rows[order(len(rows), seed)] if shuffle else rows
    ends = [i * len(rows) // splits for i in range(splits + 1)]
    scores = _scores(rows.astype(np.float64), ends)
    return float(scores.mean()), float(scores.std())


def dgm_eval(logits: ArrayLike, splits: int = SPLITS, *, seed: int = SEED) -> tuple[float, float]:
    """dgm-eval's (Stein et al. 2023, arXiv 2306.04675): torch-fidelity's order, `N // splits` rows in each split.

    What is left over is not used; population deviation.

    Raises:
      ValueError: for fewer rows than splits, and logits that are not finite.
    """
    rows = _rows(logits, splits)
    size = len(rows) // splits
    scores = _scores(rows[order(len(rows), seed)].astype(np.float64), range(0, splits * size + 1, size))
    return float(scores.mean()), float(scores.std())


def torchmetrics(logits: ArrayLike, splits: int = SPLITS, *, seed: int = SEED) -> tuple[float, float]:
    """torchmetrics': shuffled, splits of `ceil(N / splits)` rows, which may be fewer than asked for; sample deviation.

    Its order comes from torch's generator, which is not to be had here: `order` stands in. Of one split the deviation
    is not defined: NaN.

    Raises:
      ValueError: for fewer rows than splits, and logits that are not finite.
    """
    rows = _rows(logits, splits)
    size = -(-len(rows) // splits)
    scores = _scores(rows[order(len(rows), seed)].astype(np.float64), [*range(0, len(rows), size), len(rows)])
    return float(scores.mean()), float(scores.std(ddof=1)) if len(scores) > 1 else float("nan")


def adm(logits: ArrayLike, split_size: int = SPLIT_SIZE) -> tuple[float, float]:
    """ADM's evaluator (Dhariwal and Nichol 2021, arXiv 2105.05233): consecutive splits of 5000 rows, in float32.

    The last split may be smaller and counts as much. ADM reports the mean alone; the deviation is the population's.

    Raises:
      ValueError: for a split size below 1, and logits that are not finite.
    """
    if split_size < 1:
        raise ValueError(f"a split has 1 row or more, got {split_size}")
    rows = _rows(logits, 1)
    scores = _scores(rows.astype(np.float32), [*range(0, len(rows), split_size), len(rows)])
    return float(scores.mean()), float(scores.std())


RULES = {"torch-fidelity": torch_fidelity, "adm": adm, "torchmetrics": torchmetrics, "dgm-eval": dgm_eval}
"""Tool -> its function."""


def order(count: int, seed: int = SEED) -> np.ndarray:
    """The permutation in which torch-fidelity and dgm-eval read `count` samples."""
    return np.random.RandomState(seed).permutation(count)


def _scores(logits: np.ndarray, ends: Iterable[int]) -> np.ndarray:
    """Score of the rows between each two ends, float64; probabilities are in the precision of the logits."""
    ends = list(ends)
    return np.asarray([_score(logits[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)], np.float64)


def _score(logits: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)  # [n, C]
    mean = p.mean(axis=0)
    # a class that no row gives any probability adds nothing: 0 log 0 = 0
    log_mean = np.log(np.where(mean > 0, mean, 1))
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))


def _rows(logits: ArrayLike, splits: int) -> np.ndarray:
    if splits < 1:
        raise ValueError(f"there is 1 split or more, got {splits}")
    return checked("logits", logits, least=splits)

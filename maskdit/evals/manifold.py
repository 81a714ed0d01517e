"""Precision, recall, density and coverage: which samples lie among the data, and which data among the samples.

The manifold of a set is the union of balls around its rows, each as wide as the distance to the k-th nearest other row.

- Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991; k = 3): shares of samples within a ball of
  the data, and of data within a ball of the samples, borders included. `precision_recall`.
- Precision, recall, density and coverage (Naeem et al. 2020, arXiv 2002.09797; k = 5): as before without borders;
  balls of the data that a sample lies in, over k; share of data whose ball holds a sample. `prdc`.

Distances are squared, `|u|^2 - 2 u.v + |v|^2` cut at 0, in blocks of rows with all columns: the sets and about 300 MB
at once. By precision:
- `float32`: on the device; the default, and what to use for large sets.
- `float16`: on the device, as ADM's evaluator takes them while all are finite (`adm`); numbers differ by a few samples.
- `float64`: on the host, as the prdc package and torch-fidelity's tests do; for small sets.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from maskdit.evals.feature_sets import pair

PRECISIONS = ("float32", "float16", "float64")
BLOCK = 2**24
"""Distances held at once: 64 MB of float32, of which products, sums and the search for neighbours hold a few copies."""


@dataclasses.dataclass(frozen=True, eq=False)
class Balls:
    """What the balls of two sets, of R real and F fake rows, hold of each other.

    Attributes:
      radii_real, radii_fake: squared distance of each row to its k-th nearest other row, `[R]` and `[F]`.
      in_real: how many balls of real rows hold each fake row, `[F]`.
      in_fake: how many balls of fake rows hold each real row, `[R]`.
      nearest: squared distance of each real row to the nearest fake one, `[R]`.
    """

    radii_real: np.ndarray
    radii_fake: np.ndarray
    in_real: np.ndarray
    in_fake: np.ndarray
    nearest: np.ndarray

    @property
    def precision(self) -> float:
        """Share of fake rows within a ball of the real set."""
        return float(np.mean(self.in_real > 0))

    @property
    def recall(self) -> float:
        """Share of real rows within a ball of the fake set."""
        return float(np.mean(self.in_fake > 0))


def precision_recall(
    real: ArrayLike, fake: ArrayLike, k: int = 3, *, precision: str = "float32"
) -> tuple[float, float]:
    """Improved precision and recall.

    Args:
      real: features of data `[R, D]`.
      fake: features of samples `[F, D]`. Papers compare 50,000 samples with 10,000 (ADM) or 50,000 images; recall and
        precision depend on both numbers.
      k: neighbour that gives the radius.
      precision: of distances, see the module.

    Raises:
      ValueError: for k below 1, k rows or fewer, two widths, an unknown precision, and features that are not finite.
    """
    found = balls(real, fake, k, precision=precision)
    return found.precision, found.recall


def adm(real: ArrayLike, fake: ArrayLike, k: int = 3) -> tuple[float, float]:
    """`precision_recall` as ADM's evaluator runs it (Dhariwal and Nichol 2021, arXiv 2105.05233): float16 distances.

    Where one of them is not finite, all of these two sets are taken in float32; ADM decides by blocks of 10,000 rows.
    It also looks after the cut at 0, and so takes distances for 0 where `2 u.v` overflows alone, as for features whose
    squares sum to 33,000 to 65,000; here those are taken in float32.

    Raises:
      ValueError: as `precision_recall` does.
    """
    return precision_recall(real, fake, k, precision="float16")


def torch_fidelity(
    real: ArrayLike, fake: ArrayLike, k: int = 3, *, precision: str = "float32"
) -> tuple[float, float, float]:
    """Precision, recall and their F-score `2 p r / max(1e-5, p + r)`, as torch-fidelity gives them.

    Its distances are Euclidean, which orders them as their squares; it keeps the features' precision.

    Raises:
      ValueError: as `precision_recall` does.
    """
    found = balls(real, fake, k, precision=precision)
    p, r = found.precision, found.recall
    return p, r, 2 * p * r / max(1e-5, p + r)


def prdc(real: ArrayLike, fake: ArrayLike, k: int = 5, *, precision: str = "float32") -> dict[str, float]:
    """Precision, recall, density and coverage as the prdc package defines them: rows on a border are outside.

    Args:
      real, fake, k, precision: as of `precision_recall`. The package takes distances in float64.

    Returns:
      `precision`, `recall`, `coverage` in [0, 1]; `density`, which may be above 1 and is 1 on average for equal sets.

    Raises:
      ValueError: as `precision_recall` does.
    """
    found = balls(real, fake, k, precision=precision, strict=True)
    return {
        "precision": found.precision,
        "recall": found.recall,
        "density": float(np.mean(found.in_real)) / k,
        "coverage": float(np.mean(found.nearest < found.radii_real)),
    }


def balls(
    real: ArrayLike,
    fake: ArrayLike,
    k: int,
    *,
    precision: str = "float32",
    strict: bool = False,
    block: int = BLOCK,
) -> Balls:
    """The balls of two sets, and what they hold of each other; all that scores are made of.

    Args:
      real, fake: features `[R, D]` and `[F, D]`.
      k: neighbour that gives the radius.
      precision: of distances, see the module.
      strict: whether a row at the border of a ball is outside.
      block: number of distances held at once; no number depends on it but for rounding.

    Raises:
      ValueError: as `precision_recall` does.
    """
    if k < 1:
        raise ValueError(f"k counts neighbours from 1 on, got {k}")
    if precision not in PRECISIONS:
        raise ValueError(f"distances are taken in {', '.join(PRECISIONS)}; got '{precision}'")
    reals, fakes = pair(real, fake, least=k + 1)
    radii_real, radii_fake = (_neighbour_radii(part, k, precision, block) for part in (reals, fakes))
    return _held(reals, fakes, radii_real, radii_fake, precision, strict, block)


def _neighbour_radii(rows: np.ndarray, k: int, precision: str, block: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other one, `[N]`."""
    function = _closest if precision == "float64" else _closest_jitted
    found = []
    for part, columns, size in _blocks(rows, rows, precision, block):
        closest, finite = function(part, columns, k=k)
        if precision == "float16" and not finite:
            return _neighbour_radii(rows, k, "float32", block)
        found.append(np.asarray(closest)[:size, k])  # the row itself is the first
    return np.concatenate(found)


def _held(
    real: np.ndarray,
    fake: np.ndarray,
    radii_real: np.ndarray,
    radii_fake: np.ndarray,
    precision: str,
    strict: bool,
    block: int,
) -> Balls:
    function = _contents if precision == "float64" else _contents_jitted
    in_real, in_fake, nearest_fake = np.zeros(len(fake), np.int64), [], []
    start = 0
    for part, columns, size in _blocks(real, fake, precision, block):
        # a row that fills up a block has no ball
        row_radii = np.full(len(part), -1, radii_real.dtype)
        row_radii[:size] = radii_real[start : start + size]
        start += size
        held, holders, closest, finite = function(part, columns, row_radii, radii_fake, strict=strict)
        if precision == "float16" and not finite:
            return _held(real, fake, radii_real, radii_fake, "float32", strict, block)
        in_real += np.asarray(held)
        in_fake.append(np.asarray(holders)[:size])
        nearest_fake.append(np.asarray(closest)[:size])
    return Balls(radii_real, radii_fake, in_real, np.concatenate(in_fake), np.concatenate(nearest_fake))


def _blocks(rows: np.ndarray, columns: np.ndarray, precision: str, block: int) -> Iterator[tuple[Any, Any, int]]:
    """Blocks of rows, all of one size, each with all columns and the number of rows that are not filling."""
    size = min(len(rows), max(1, block // len(columns)))
    xp: Any = np if precision == "float64" else jnp
    every = xp.asarray(columns).astype(precision)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        filled = np.pad(part, ((0, size - len(part)), (0, 0)))
        yield xp.asarray(filled).astype(precision), every, len(part)


def _closest(rows: Any, columns: Any, *, k: int) -> tuple[Any, Any]:
    """The k + 1 smallest distances of each row `[n, k + 1]`, the largest of them last."""
    distances, finite = _squared_distances(rows, columns)
    if isinstance(distances, np.ndarray):
        return np.partition(distances, k, axis=1)[:, : k + 1], finite
    # returned whole: XLA sorts whole rows where only one column of the result is used
    return -jax.lax.top_k(-distances, k + 1)[0], finite


def _contents(rows: Any, columns: Any, row_radii: Any, column_radii: Any, *, strict: bool) -> tuple[Any, Any, Any, Any]:
    distances, finite = _squared_distances(rows, columns)
    by_rows = distances < row_radii[:, None] if strict else distances <= row_radii[:, None]
    by_columns = distances < column_radii if strict else distances <= column_radii
    return by_rows.sum(0), by_columns.sum(1), distances.min(1), finite


def _squared_distances(rows: Any, columns: Any) -> tuple[Any, Any]:
    """`[n, D]` and `[m, D]` -> `[n, m]`, and whether all are finite; those of float16 come back as float32."""
    xp: Any = np if isinstance(rows, np.ndarray) else jnp
    product = xp.matmul(rows, columns.T, **({} if xp is np else {"precision": jax.lax.Precision.HIGHEST}))
    squared = xp.square(rows).sum(1)[:, None] - 2 * product + xp.square(columns).sum(1)
    finite = xp.isfinite(squared).all()
    distances = xp.maximum(squared, 0)
    return distances.astype(np.float32) if distances.dtype == np.float16 else distances, finite


_closest_jitted = jax.jit(_closest, static_argnames="k")
_contents_jitted = jax.jit(_contents, static_argnames="strict")

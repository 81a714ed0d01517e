"""Streamed statistics are those of float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.evals.statistics import Moments, Pair, empty

_ADD = jax.jit(Moments.add)


def streamed(rows, batch, centre=None, weight=None):
    sums = empty(rows[:batch].mean(0) if centre is None else centre)
    weight = np.ones(len(rows), np.float32) if weight is None else weight
    for start in range(0, len(rows), batch):
        sums = _ADD(sums, rows[start : start + batch], weight[start : start + batch])
    return sums.gaussian()


def near(found, rows):
    rows = rows.astype(np.float64)
    wanted = np.cov(rows, rowvar=False)
    trace = np.trace(wanted)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=0, atol=1e-6 * np.sqrt(trace))
    np.testing.assert_allclose(found.cov, wanted, rtol=0, atol=1e-6 * trace)
    assert found.count == len(rows)


@pytest.mark.parametrize("mean", [0.0, 1e3, -1e5])
def test_a_large_mean_takes_nothing_off_a_small_spread(mean):
    rng = np.random.default_rng(0)
    rows = (mean + rng.standard_normal((2048, 6)) @ rng.standard_normal((6, 6))).astype(np.float32)
    near(streamed(rows, 16), rows)


def test_the_sums_do_not_drift():
    program = jax.jit(lambda pair, term: jax.lax.fori_loop(0, 10_000, lambda _, sums: sums + term, pair))
    made = program(Pair(jnp.float32(1e8), jnp.float32(0)), jnp.float32(0.7))
    np.testing.assert_allclose(
        made.in_double(), 1e8 + 10_000 * float(np.float32(0.7)), rtol=2e-8
    )  # float32 alone: 7e-5


def test_rows_of_weight_0_do_not_count():
    rows = np.random.default_rng(1).standard_normal((32, 3)).astype(np.float32)
    weight = np.tile(np.array([1, 0, 1, 1], np.float32), 8)
    shown = np.where(weight[:, None] > 0, rows, np.nan)
    near(streamed(shown, 8, centre=np.zeros(3), weight=weight), rows[weight > 0])


def test_one_image_has_no_covariance():
    rows = np.ones((4, 2), np.float32)
    for weight in ([0, 0, 0, 0], [0, 1, 0, 0]):
        with pytest.raises(ValueError, match=f"2 or more images, got {sum(weight)}"):
            streamed(rows, 4, weight=np.array(weight, np.float32))

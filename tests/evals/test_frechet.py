"""Closed forms of the Fréchet distance, its invariances, few samples and faults."""

import numpy as np
import pytest

from maskdit.evals import frechet
from maskdit.evals.frechet import Gaussian, frechet_distance, gaussian

WIDTH = 12


def features(count=60, seed=0, width=WIDTH):
    random = np.random.default_rng(seed)
    return random.standard_normal((count, width)) @ random.standard_normal((width, width)) + random.normal(size=width)


def rotation(seed=5, width=WIDTH):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]


def of_variances(mean, variances, turn):
    return Gaussian(turn @ mean, turn @ np.diag(variances) @ turn.T)


@pytest.mark.parametrize("zeros", [0, 4])
def test_commuting_covariances(zeros):
    """Where eigenvectors are shared the distance is that of the means and of the deviations."""
    random = np.random.default_rng(0)
    (m1, m2), (v1, v2) = random.normal(size=(2, WIDTH)), random.uniform(0.1, 9, (2, WIDTH))
    v1[:zeros] = v2[zeros : 2 * zeros] = 0  # singular in different directions
    expected = np.square(m1 - m2).sum() + np.square(np.sqrt(v1) - np.sqrt(v2)).sum()
    a, b = of_variances(m1, v1, rotation()), of_variances(m2, v2, rotation())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8 if zeros else 1e-12)
    assert frechet.torch_fidelity(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [60, 7])
def test_equal_sets_are_at_zero_and_both_ways_are_one(count):
    a, b = gaussian(features(count)), gaussian(features(40, seed=1))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-11 * np.trace(a.cov))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_one_line_against_a_full_set():
    """A covariance of rank 1, s u u^T, has tr sqrt(S1 S2) = sqrt(s u^T S2 u)."""
    line = np.outer([-1.0, 0.0, 1.0], np.arange(1.0, WIDTH + 1))
    a, b = gaussian(line), gaussian(features())
    s, u = np.trace(a.cov), np.arange(1.0, WIDTH + 1) / np.linalg.norm(np.arange(1.0, WIDTH + 1))
    expected = b.mean @ b.mean + s + np.trace(b.cov) - 2 * np.sqrt(s * u @ b.cov @ u)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(gaussian(np.ones((3, WIDTH))), b) == pytest.approx(
        np.square(1 - b.mean).sum() + np.trace(b.cov), rel=1e-12
    )


def test_rotations_and_shifts_change_nothing_and_scales_go_in_square():
    x, y, turn = features(), features(9, seed=1), rotation()
    plain = frechet_distance(gaussian(x), gaussian(y))
    assert frechet_distance(gaussian(x @ turn + 3), gaussian(y @ turn + 3)) == pytest.approx(plain, rel=1e-10)
    assert frechet_distance(gaussian(10 * x), gaussian(10 * y)) == pytest.approx(100 * plain, rel=1e-12)


def test_statistics_are_numpys_in_any_number_of_blocks(monkeypatch):
    x = features(50).astype(np.float32) + 100
    monkeypatch.setattr(frechet, "ROWS", 16)
    found = gaussian(x)
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.cov, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10)
    assert found.count == 50 and found.width == WIDTH


def test_means_of_float32_sums_differ_and_covariances_do_not():
    x = np.random.default_rng(0).uniform(0.9, 1.1, (20000, 2)).astype(np.float32)
    exact, single = gaussian(x), gaussian(x, "float32")
    np.testing.assert_array_equal(single.mean, x.mean(0))
    np.testing.assert_array_equal(exact.cov, single.cov)
    assert 0 < np.abs(exact.mean - single.mean).max() < 1e-4


def test_few_samples():
    assert frechet.rank_deficient(WIDTH, WIDTH) and not frechet.rank_deficient(WIDTH + 1, WIDTH)
    for count in (WIDTH, WIDTH + 1):
        rank = np.linalg.matrix_rank(gaussian(features(count)).cov)
        assert (rank < WIDTH) == frechet.rank_deficient(count, WIDTH)


def with_entry(value):
    cov = np.eye(2)
    cov[0, 1] = value
    return Gaussian(np.zeros(2), cov)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian(features(1)), "have 1 rows: this score is defined from 2 on"),
        (lambda: gaussian([[1.0, np.nan], [1.0, 2.0]]), "1 of 2 rows of the features hold numbers that are not finite"),
        (lambda: gaussian(features(), "float16"), "in float64 or float32, got 'float16'"),
        (lambda: Gaussian(np.zeros(2), np.eye(3)), r"a covariance \[D, D\]; got \(2,\) and \(3, 3\)"),
        (lambda: Gaussian(np.zeros(2), np.eye(2), 1), "needs 2 samples or more, got 1"),
        (lambda: with_entry(np.inf), "1 entries of a mean and covariance of 2 features are not finite"),
        (lambda: with_entry(0.5), "a covariance is symmetric; this one of 2 features is not"),
        (
            lambda: frechet_distance(gaussian(features()), gaussian(features(width=5))),
            "one set has 12 features and the other 5: both come from one network",
        ),
    ],
)
def test_undefined_distances_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call()

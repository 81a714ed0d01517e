"""The bias of few samples, against closed forms."""

import numpy as np
import pytest

from maskdit.evals import bias as module
from maskdit.evals.bias import bias
from maskdit.evals.frechet import Gaussian, frechet_distance, gaussian


def test_of_one_feature_it_is_known():
    # E (m - m_N)^2 = v / N; E (s - s_N)^2 -> v / (2 N)
    for variance in (1.0, 9.0):
        assert bias(Gaussian(np.zeros(1), np.full((1, 1), variance)), 100) == pytest.approx(1.5 * variance / 100)


def test_the_expansion_and_draws_agree_where_they_meet(monkeypatch):
    values = np.geomspace(1, 0.01, 24)
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0]
    reference = Gaussian(np.ones(24), turned @ np.diag(values) @ turned.T)
    expected = bias(reference, 8 * 24)
    monkeypatch.setattr(module, "_MANY", 9)
    rows = np.random.default_rng(0).standard_normal((8 * 24, 24)) * np.sqrt(np.linalg.eigvalsh(reference.cov))
    plain = frechet_distance(gaussian(rows), Gaussian(np.zeros(24), np.diag(np.linalg.eigvalsh(reference.cov))))
    assert bias(reference, 8 * 24, 0) == pytest.approx(plain, rel=1e-9)
    drawn = [bias(reference, 8 * 24, seed) for seed in range(8)]
    assert np.mean(drawn) == pytest.approx(expected, rel=0.2) and len(set(drawn)) == 8
    monkeypatch.setattr(module, "_BLOCK", 50)
    assert bias(reference, 8 * 24, 3) == pytest.approx(drawn[3])  # however they are drawn


def test_fewer_samples_lie_further_away_also_below_the_number_of_features():
    reference = Gaussian(np.zeros(16), np.eye(16))
    found = [bias(reference, count) for count in (2, 8, 32, 100, 128, 1000)]
    assert found == sorted(found, reverse=True) and found[0] > 16
    assert bias(Gaussian(np.zeros(3), np.zeros((3, 3))), 5) == 0

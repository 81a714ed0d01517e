"""Closed forms of the Monge Inception distance, its draws and faults."""

import numpy as np
import pytest

from maskdit.evals import mind

WIDTH = 6


def features(count=50, seed=0):
    return np.random.default_rng(seed).standard_normal((count, WIDTH))


def test_a_shift_counts_three_times_its_square_on_average():
    x, shift = features(), np.arange(WIDTH) - 1.0
    axes = np.eye(WIDTH)
    assert mind.mind_along(x, x[::-1] + shift, axes) == pytest.approx(3 * shift @ shift)
    assert mind.mind(x, x + shift, projections=4000) == pytest.approx(3 * shift @ shift, rel=0.05)


def test_a_scale_is_the_distance_of_deviations():
    """In one dimension the best transport of x to 2 x moves each by itself."""
    x = features()
    assert mind.mind_along(x, 2 * x, np.eye(WIDTH)) == pytest.approx(3 * np.square(x).sum(1).mean())


def test_blocks_of_directions_and_rows_are_the_whole(monkeypatch):
    x, y, directions = features(), features(seed=1), mind.unit_directions(130, WIDTH)
    whole = mind.mind_along(x, y, directions)
    parts = [mind.mind_along(x, y, part) for part in (directions[:65], directions[65:])]
    assert np.mean(parts) == pytest.approx(whole, rel=1e-12)
    monkeypatch.setattr(mind, "ROWS", 16)
    assert mind.mind_along(x, y, directions) == pytest.approx(whole, rel=1e-12)


def test_the_larger_set_is_cut_at_random_and_by_seed():
    x, y = features(50), features(30, seed=1)
    first, again, other = (mind.mind(x, y, projections=8, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    # rows in order of size, of which the first half is far from the whole
    ordered = np.repeat(np.arange(2000.0)[:, None], WIDTH, axis=1)
    head, spread = ordered[:1000], ordered[::2]
    assert mind.mind(ordered, spread, projections=8) < 0.02 * mind.mind(head, spread, projections=8)


def test_directions_are_of_length_one_and_go_all_ways():
    directions = mind.unit_directions(4000, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions.T @ directions / 4000, np.eye(WIDTH) / WIDTH, atol=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mind.mind(x, x, projections=0), "1 direction or more, got 0"),
        (lambda x: mind.mind_along(x, x[:3], np.eye(WIDTH)), "one size here, got 50 and 3: cut the larger"),
        (lambda x: mind.mind_along(x, x, np.eye(2)), r"directions are \[P, 6\] for these features, got \[2, 2\]"),
        (lambda x: mind.mind(x, x[:0]), "fake features have 0 rows"),
    ],
)
def test_faults_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call(features())

"""Closed forms of the kernel distance, its draws and faults."""

import itertools

import numpy as np
import pytest

from maskdit.evals import kernel


def features(count=40, seed=0, width=6, shift=0.0):
    return (np.random.default_rng(seed).standard_normal((count, width)) + shift).astype(np.float32)


def by_pairs(x, y, k):
    """The definition, pair by pair."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    within = [np.mean([k(a, b) for a, b in itertools.permutations(part, 2)]) for part in (x, y)]
    return sum(within) - 2 * np.mean([k(a, b) for a, b in itertools.product(x, y)])


@pytest.mark.parametrize(
    ("function", "one"),
    [
        (kernel.Polynomial(), lambda a, b: (a @ b / 6 + 1) ** 3),
        (kernel.Polynomial(2, 0.5, 0.0), lambda a, b: (a @ b / 2) ** 2),
        (kernel.Rbf(2.0), lambda a, b: np.exp(-np.square(a - b).sum() / 8)),
    ],
)
@pytest.mark.parametrize("block", [4, 100])
def test_the_whole_estimate_is_its_definition(function, one, block):
    x, y = features(11), features(7, seed=1, shift=0.5)
    assert kernel.mmd(x, y, function, block) == pytest.approx(by_pairs(x, y, one), rel=1e-10)


@pytest.mark.parametrize("rule", kernel.RULES)
def test_a_subset_of_everything_is_the_whole_estimate(rule):
    x, y = features(30), features(30, seed=1, shift=0.5)
    mean, deviation = kernel.kid(x, y, rule=rule, subsets=3, size=1000)
    assert mean == pytest.approx(kernel.mmd(x, y), rel=1e-5)
    assert deviation == pytest.approx(0, abs=1e-5)


def test_no_bias():
    """The mean over many pairs of small sets of one distribution is 0 within its error."""
    values = [kernel.mmd(features(10, seed=2 * i), features(15, seed=2 * i + 1)) for i in range(400)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error < 0.1
    assert np.min(values) < 0
    mean, deviation = kernel.kid(features(300), features(300, seed=1, shift=1.0), subsets=20, size=100)
    assert mean > 5 * deviation > 0


def test_draws_are_without_replacement_and_in_the_tools_order():
    random = np.random.RandomState(3)
    fake, real = random.choice(9, 4, replace=False), random.choice(7, 4, replace=False)
    draws = kernel.RULES["torch-fidelity"].draws(9, 7, subsets=5, size=4, seed=3)
    np.testing.assert_array_equal(draws.fake[0], fake)
    np.testing.assert_array_equal(draws.real[0], real)
    random = np.random.RandomState(3)
    real, fake = random.choice(7, 4, replace=False), random.choice(9, 4, replace=False)
    draws = kernel.RULES["dgm-eval"].draws(9, 7, subsets=5, size=4, seed=3)
    np.testing.assert_array_equal(draws.fake[0], fake)
    np.testing.assert_array_equal(draws.real[0], real)
    for rule in kernel.RULES.values():
        draws = rule.draws(9, 7, subsets=50, size=4, seed=3)
        for rows, count in ((draws.fake, 9), (draws.real, 7)):
            assert {len(set(subset)) for subset in rows.tolist()} == {4}
            assert set(rows.ravel().tolist()) == set(range(count))


def test_precision_is_that_of_the_rule():
    """Features of large norm lose digits in the float32 kernel of torch-fidelity, and none in dgm-eval's float64."""
    x, y = 300 * features(20), 300 * features(20, seed=1)
    exact, many = kernel.mmd(x, y), {"subsets": 1, "size": 20}
    assert kernel.kid(x, y, rule="dgm-eval", **many)[0] == pytest.approx(exact, rel=1e-12)
    rounded = kernel.kid(x, y, rule="torch-fidelity", **many)[0]
    assert 1e-12 < abs(rounded / exact - 1) < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: kernel.kid(x, x, rule="fid"), "the rule of torch-fidelity, torchmetrics, dgm-eval; got 'fid'"),
        (lambda x: kernel.kid(x, x, subsets=0), "1 subset or more of 2 rows or more; got 0 of 40"),
        (lambda x: kernel.kid(x[:1], x), "fake features have 1 rows: this score is defined from 2 on"),
        (lambda x: kernel.mmd(x, x[:, :4]), "real features are 4 wide and fake ones 6"),
        (lambda x: kernel.Polynomial(degree=0), "degree is 1 or more and gamma positive"),
        (lambda x: kernel.Rbf(0.0), "sigma is positive, got 0.0"),
    ],
)
def test_faults_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call(features())

"""Closed forms of precision, recall, density and coverage; blocks, precisions and faults."""

import numpy as np
import pytest

from maskdit.evals import manifold


def features(count, seed=0, width=5, shift=0.0):
    return (np.random.default_rng(seed).standard_normal((count, width)) + shift).astype(np.float32)


def on_a_line(*places):
    return np.asarray(places, np.float64)[:, None]


@pytest.mark.parametrize("precision", manifold.PRECISIONS)
def test_a_line(precision):
    """Real balls are [-1, 1], [0, 2], [1, 3] and [2, 18]; fake ones [1.5, 3.5], [2.5, 4.5] and [3.5, 56.5]."""
    real, fake = on_a_line(0, 1, 2, 10), on_a_line(2.5, 3.5, 30)
    found = manifold.balls(real, fake, 1, precision=precision)
    np.testing.assert_allclose(found.radii_real, [1, 1, 1, 64])
    np.testing.assert_allclose(found.radii_fake, [1, 1, 26.5**2], rtol=1e-3)
    assert (found.in_real.tolist(), found.in_fake.tolist()) == ([2, 1, 0], [0, 0, 1, 1])
    assert (found.precision, found.recall) == (pytest.approx(2 / 3), 0.5)
    np.testing.assert_allclose(found.nearest, np.square([2.5, 1.5, 0.5, 6.5]))
    expected = {"precision": 2 / 3, "recall": 0.5, "density": 1, "coverage": 0.5}
    assert manifold.prdc(real, fake, 1, precision=precision) == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_borders_are_inside_but_for_prdc(precision):
    real, fake = on_a_line(0, 1, 3), on_a_line(-1, -2, 8)
    assert manifold.precision_recall(real, fake, 1, precision=precision) == (pytest.approx(1 / 3), 1)
    found = manifold.prdc(real, fake, 1, precision=precision)
    assert (found["precision"], found["density"], found["coverage"]) == (0, 0, 0)


def test_equal_and_far_sets():
    x = features(40)
    assert manifold.precision_recall(x, x) == (1, 1)
    assert manifold.adm(x, x + 30) == (0, 0)
    assert manifold.torch_fidelity(x, x + 30) == (0, 0, 0)
    assert manifold.torch_fidelity(x, x) == pytest.approx((1, 1, 1))
    same = manifold.prdc(x, x, precision="float64")
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert same["density"] == pytest.approx(1)  # each of N balls holds its own k rows strictly inside
    assert manifold.prdc(x, x + 30) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_samples_of_one_mode_are_precise_and_recall_little():
    real = np.concatenate([features(40), features(40, seed=1, shift=20)])
    fake = features(40, seed=2)
    precision, recall = manifold.precision_recall(real, fake)
    assert precision > 0.6 and recall <= 0.5
    assert manifold.precision_recall(fake, real) == (recall, precision)
    assert manifold.prdc(real, fake)["coverage"] <= 0.5


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_blocks_are_the_whole(precision):
    """A last block that is not full is filled up, and its filling counts nowhere."""
    real, fake = features(37), features(23, seed=1, shift=0.3)
    one = manifold.balls(real, fake, 3, precision=precision)
    several = manifold.balls(real, fake, 3, precision=precision, block=23 * 10)
    for name in ("radii_real", "radii_fake", "nearest"):
        np.testing.assert_allclose(getattr(several, name), getattr(one, name), rtol=1e-5)
    np.testing.assert_array_equal(several.in_real, one.in_real)
    np.testing.assert_array_equal(several.in_fake, one.in_fake)


def test_float16_gives_way_where_it_overflows():
    """Features of a few hundred square to more than float16 holds; the scores have no scale."""
    real, fake = features(37), features(23, seed=1, shift=0.3)
    precise = manifold.balls(512 * real, 512 * fake, 3, precision="float16")
    single = manifold.balls(real, fake, 3)
    np.testing.assert_array_equal(precise.in_real, single.in_real)
    np.testing.assert_allclose(precise.radii_real, 512**2 * single.radii_real, rtol=1e-5)
    half = manifold.balls(real, fake, 3, precision="float16")
    gap = np.abs(half.radii_real / single.radii_real - 1).max()
    assert 1e-5 < gap < 2e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: manifold.precision_recall(x, x, 0), "k counts neighbours from 1 on, got 0"),
        (lambda x: manifold.prdc(x, x[:5], 5), "fake features have 5 rows: this score is defined from 6 on"),
        (lambda x: manifold.prdc(x, x, precision="bf16"), "float32, float16, float64; got 'bf16'"),
        (lambda x: manifold.adm(x, x[:, :2]), "real features are 5 wide and fake ones 2"),
    ],
)
def test_faults_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call(features(10))

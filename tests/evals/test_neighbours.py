"""Neighbours are those of a plain search, distances of near copies are exact, rows of the picture are whole."""

import numpy as np
import pytest

from maskdit.evals.neighbours import Neighbours, memorisation, nearest, picture


def features(count, seed=0, width=6):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def cut(images, sizes, numbers=None):
    numbers = np.arange(len(images)) if numbers is None else numbers
    ends = np.cumsum(sizes)
    return [(images[end - size : end], numbers[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def searched(queries, images, numbers, k):
    distances = np.sqrt(np.square(queries[:, None].astype(np.float64) - images).sum(-1))
    order = np.stack([np.lexsort((numbers, row))[:k] for row in distances])
    return np.take_along_axis(distances, order, 1), numbers[order]


@pytest.mark.parametrize("sizes", [(40,), (1, 2, 37), (10, 0, 30), (7,) * 5 + (5,)])
@pytest.mark.parametrize("k", [1, 4])
def test_neighbours_are_those_of_a_plain_search_in_any_cut_and_order(sizes, k):
    queries, images = features(9), features(40, 1)
    numbers = np.random.default_rng(2).permutation(1000)[:40]
    found = nearest(queries, iter(cut(images, sizes, numbers)), k)
    distances, expected = searched(queries, images, numbers, k)
    np.testing.assert_array_equal(found.numbers, expected)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)


def test_more_queries_than_are_held_at_once():
    queries, images = features(1500, width=2), features(30, 1, width=2)
    found = nearest(queries, cut(images, (10, 20)), 2)
    np.testing.assert_array_equal(found.numbers, searched(queries, images, np.arange(30), 2)[1])


def test_near_copies_far_from_the_origin_keep_their_distances():
    """Of vectors of length 1e6 the product form in float32 is wrong by more than the distances themselves."""
    queries = features(3) + np.float32(1e6)
    step = np.spacing(np.float32(1e6))  # 0.0625
    copies = np.concatenate([queries + 2 * step * np.eye(6, dtype=np.float32)[0], queries, queries[::-1]])
    found = nearest(queries, cut(copies, (4, 5)), 3)
    np.testing.assert_array_equal(found.distances[:, :2], 0)
    np.testing.assert_array_equal(found.numbers[0], [3, 8, 0])
    assert found.distances[0, 2] == 2 * step


def test_ties_go_to_the_lower_numbers_whatever_comes_first():
    images = np.repeat(features(1), 8, axis=0)
    numbers = np.array([7, 3, 5, 1, 6, 0, 4, 2])
    for sizes in ((8,), (3, 5), (1,) * 8):
        found = nearest(features(2, 3), cut(images, sizes, numbers), 3)
        np.testing.assert_array_equal(found.numbers, [[0, 1, 2]] * 2)


@pytest.mark.parametrize(
    ("queries", "images", "k", "message"),
    [
        (features(2), features(3), 4, "there are 3 training images, too few for 4 neighbours"),
        (features(2), features(3), 0, "got k=0 and 2 queries"),
        (features(2)[0], features(3), 1, r"queries are \[images, features\]; got \[6\]"),
        (features(2), features(3, width=5), 1, "queries have 6 features and training images 5"),
        (features(2) * np.nan, features(3), 1, "queries hold numbers that are not finite"),
    ],
)
def test_faults_are_sentences(queries, images, k, message):
    with pytest.raises(ValueError, match=message):
        nearest(queries, cut(images, (len(images),)), k)
    with pytest.raises(ValueError, match="3 training images have as many whole numbers; got float64"):
        nearest(features(2), [(features(3), np.zeros(3))], 1)


def test_copies_stand_out_against_held_out_images():
    train, held_out = features(300, 1), nearest(features(200, 2), [(features(300, 1), np.arange(300))], 1)
    honest = nearest(features(400, 3), [(train, np.arange(300))], 2)
    copies = nearest(np.concatenate([train[:100], features(300, 3)]), [(train, np.arange(300))], 2)
    fair, caught = memorisation(honest, held_out), memorisation(copies, held_out)
    assert fair.share < 0.05 and fair.held_out_share == pytest.approx(0.01)
    assert abs(fair.median / fair.held_out_median - 1) < 0.1
    assert 0.25 <= caught.share < 0.3 and caught.median < fair.median
    assert f"within {caught.near:.4g}" in str(caught) and f"{100 * caught.share:.1f} % of samples" in str(caught)


def test_half_of_what_is_near():
    held_out = Neighbours(np.arange(1.0, 102.0)[:, None], np.zeros((101, 1), np.int64))
    found = memorisation(Neighbours(np.array([[0.5, 9.0], [2.5, 9.0]]), np.zeros((2, 2), np.int64)), held_out)
    assert (found.near, found.share, found.held_out_median, found.median) == (2.0, 0.5, 51.0, 1.5)
    assert found.held_out_share == 2 / 101


def test_rows_are_a_sample_a_gap_and_its_neighbours():
    images = np.random.default_rng(0).integers(0, 250, (2, 4, 8, 12, 3), dtype=np.uint8)
    sheet = picture(images[:, 0], images[:, 1:], padding=1)
    gap = 3
    assert sheet.shape == (2 * 9 + 1, 14 + gap + 3 * 13 + 1, 3)
    for row in range(2):
        top = 1 + 9 * row
        assert (sheet[top : top + 8, 1:13] == images[row, 0]).all()
        assert (sheet[top : top + 8, 13 : 14 + gap + 1] == 255).all()
        for column in range(3):
            left = 14 + gap + 1 + 13 * column
            assert (sheet[top : top + 8, left : left + 12] == images[row, 1 + column]).all()
    with pytest.raises(ValueError, match=r"neighbours \[n, k, H, W, 3\] of their size; got \[2, 8, 12, 3\] and \[1, 3"):
        picture(images[:, 0], images[:1, 1:])

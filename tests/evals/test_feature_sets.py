"""What features are refused, and what for."""

import numpy as np
import pytest

from maskdit.evals.feature_sets import checked, pair


def rows(count=5, width=3):
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def test_precision_is_kept_and_whole_numbers_are_exact():
    assert checked("features", rows().astype(np.float16)).dtype == np.float16
    counted = checked("features", np.full((2, 2), 2**53 - 1))
    assert counted.dtype == np.float64 and counted[0, 0] == 2**53 - 1


def test_bad_rows_are_counted_in_all_blocks():
    many = np.zeros((9000, 2), np.float32)
    many[[0, 4095, 4096, 8999], 1] = np.nan, np.inf, -np.inf, np.nan
    many[0, 0] = np.inf
    with pytest.raises(ValueError, match="4 of 9000 rows of the fake features hold numbers that are not finite"):
        checked("fake features", many)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (rows()[0], r"are \[N, D\], one row a sample; got shape \[3\]"),
        (rows()[:, :0], r"got shape \[5, 0\]"),
        (rows()[:1], "have 1 rows: this score is defined from 2 on"),
        (rows().astype(complex), "are real numbers, got complex64|are real numbers, got complex128"),
        ([["a", "b"]] * 3, "are real numbers, got <U1"),
    ],
)
def test_other_features_are_sentences(features, message):
    with pytest.raises(ValueError, match=message):
        checked("features", features, least=2)


def test_two_widths():
    with pytest.raises(ValueError, match="real features are 3 wide and fake ones 4: both come from one network"):
        pair(rows(), rows(width=4))

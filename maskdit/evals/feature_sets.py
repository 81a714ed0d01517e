"""What every score asks of the features it is given: rows of finite numbers, all of one width."""

import numpy as np
from numpy.typing import ArrayLike

ROWS = 4096
"""Rows that are looked at or turned into float64 at once, so that no copy of a large set is made."""


def checked(what: str, features: ArrayLike, least: int = 1) -> np.ndarray:
    """Features as an array `[N, D]` of floats in the precision they came in; whole numbers become float64.

    Args:
      what: whose features they are, for the message.
      features: one row a sample; an array that is mapped from a file is read in blocks.
      least: number of rows that the score needs.

    Raises:
      ValueError: for other shapes, fewer rows, no columns, and rows with numbers that are not finite: how many.
    """
    array = np.asanyarray(features)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{what} are [N, D], one row a sample; got shape {list(array.shape)}")
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise ValueError(f"{what} are real numbers, got {array.dtype}")
    if len(array) < least:
        raise ValueError(f"{what} have {len(array)} rows: this score is defined from {least} on; take more samples")
    bad = sum(int((~np.isfinite(array[i : i + ROWS])).any(axis=1).sum()) for i in range(0, len(array), ROWS))
    if bad:
        raise ValueError(
            f"{bad} of {len(array)} rows of the {what} hold numbers that are not finite: look at the images that made "
            "them, and at the network's precision"
        )
    return array


def pair(real: ArrayLike, fake: ArrayLike, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features, `checked`, of one width.

    Raises:
      ValueError: as `checked` does, and for two widths.
    """
    first, second = checked("real features", real, least), checked("fake features", fake, least)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"real features are {first.shape[1]} wide and fake ones {second.shape[1]}: both come from one network"
        )
    return first, second

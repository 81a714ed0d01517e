"""Which step is the best one, and which checkpoints stay."""

import json
import math

import pytest

from maskdit.training import best
from maskdit.training.best import Keeping, Scored


def scored(tmp_path, values, higher=False):
    found = Scored(tmp_path / "evaluation", "fd", higher, {"samples": 8})
    for step, value in values.items():
        found.add(step, {"fd": value, "kd": -value})
    return found


def test_the_best_is_one_of_those_that_are_there(tmp_path):
    found = scored(tmp_path, {1: 5.0, 2: 3.0, 3: math.nan, 4: 3.0, 5: 4.0})
    assert found.best([1, 2, 3, 4, 5]) == 2  # the first of equals; what is not finite is no score
    assert found.best([1, 5, 6]) == 5
    assert found.best([3, 6]) is None
    assert scored(tmp_path, {1: 5.0, 2: 3.0}, higher=True).best([1, 2]) == 1


def test_latest_and_best_and_multiples_stay(tmp_path):
    found = scored(tmp_path, {1: 5.0, 2: 3.0, 5: 4.0})
    assert Keeping(2, None, found).kept([1, 2, 3, 4, 5]) == [False, True, False, True, True]
    assert Keeping(1, 3, found).kept([1, 2, 3, 4, 5]) == [False, True, True, False, True]
    found.add(6, {"fd": 1.0})
    assert Keeping(1, None, found).kept([2, 5, 6, 7]) == [False, False, True, True]


def test_scores_are_read_back_and_those_of_another_kind_or_later_forgotten(tmp_path):
    scored(tmp_path, {1: 5.0, 2: 3.0, 3: math.inf, 4: 1.0})
    found = best.read(str(tmp_path))
    assert found.best([1, 2, 3, 4]) == 4
    found.resume("fd", False, {"samples": 8}, step=3)
    assert found.best([1, 2, 3, 4]) == 2
    found.resume("kd", False, {"samples": 8}, step=3)  # another figure of the same scores
    assert found.best([1, 2]) == 1
    found.resume("fd", False, {"samples": 16}, step=3)
    assert found.best([1, 2, 3]) is None
    assert best.read(str(tmp_path / "elsewhere")).values == {}


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"best": None, "scores": {}})])
def test_a_file_that_is_none_of_ours_is_refused(tmp_path, text):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "loop.json").write_text(text)
    with pytest.raises(ValueError, match="does not hold the scores of a run"):
        best.read(str(tmp_path))

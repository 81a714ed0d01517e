"""`maskdit bench scores` at tiny size."""

import dataclasses
import json

import numpy as np
import pytest

from maskdit import bench
from maskdit.cli import main
from maskdit.evals.frechet import gaussian
from maskdit.performance import one_distance, scores
from maskdit.performance.subject import BenchError
from maskdit.performance.timing import Spread


def tiny():
    """A case that runs in seconds."""
    small = dataclasses.replace(scores.offline(), batch=8, batches=2, turns=1)
    return scores.Case(count=50, width=6, batch=16, extractions=(lambda: small,), limit=64)


def test_parts_are_measured_told_and_written(tmp_path, capsys):
    file = tmp_path / "found.json"
    found = bench.scores(1, str(file), parts=("frechet", "rate", "order"), case=tiny())
    statistics, *routes = found.frechet.steps
    assert statistics.seconds.median > 0 and len(routes) == 2 and found.frechet.apart < 1e-9
    assert min(found.frechet.distances) > 0
    (rate,) = found.rate
    assert rate.bare.median > 0 < rate.scored.median and rate.share == rate.ratio.median
    assert found.order.images == (64, 64)
    values = found.order.distances
    assert values["held out"] < values["blurred by 2 px"] < values["blurred by 4 px"] < values["noise alone"]
    assert values["held out"] < values["noise of 32 levels"] < values["noise of 128 levels"] < values["noise alone"]
    assert found.order.right == (values["held out"] < values["blurred by 1 px"])
    told = capsys.readouterr().out
    assert "2 sets of 50 x 6" in told and "batch 8, 16 images, images/s" in told and "devices, FD" not in told
    written = json.loads(file.read_text())
    assert {"date", "load", "jax"} <= set(written) and written["scores"]["devices"] is None
    assert written["scores"]["order"]["distances"] == values


def test_streamed_statistics_are_those_of_all_rows(tmp_path):
    path = tmp_path / "one.npz"
    one_distance.statistics(50, 6, 16, str(path))
    make = one_distance.features(6, 16)
    whole = gaussian(np.concatenate([make(0, number) for number in range(4)])[:50])
    with np.load(path) as held:
        np.testing.assert_allclose(held["mean"], whole.mean, rtol=1e-5)
        np.testing.assert_allclose(held["cov"], whole.cov, atol=1e-5 * whole.cov.max())
        assert held["count"] == 50


def test_a_distance_does_not_depend_on_the_number_of_devices():
    found = scores._devices(one_distance.over_devices(70))  # the last batch is not full
    assert found.devices == (1, 8) and found.images == (70, 70)
    assert found.apart <= scores.APART and min(found.distances) > 0


def test_a_blur_keeps_sums_and_has_its_width():
    point = np.zeros((1, 33, 33, 3), np.uint8)
    point[0, 14:19, 16] = 250  # less would be rounded away
    row = scores.blurred(point, 1.0)[0, 16, :, 0].astype(float)
    assert row.argmax() == 16 and row[15] == row[17] == pytest.approx(row[16] * np.exp(-0.5), abs=1)
    flat = np.full((1, 8, 8, 3), 77, np.uint8)
    np.testing.assert_array_equal(scores.blurred(flat, 4.0), flat)


def test_what_is_missed_is_told():
    spread = Spread(10.0, 9.0, 11.0)
    rates = tuple(scores.Rate("net", spread, spread, Spread(s, s, s), s, spread) for s in (0.9, 0.89))
    devices = scores.Devices((1, 8), (1.0, 1.1), (5, 5), 2e-6)
    order = scores.Order((5, 5), {"held out": 1.0}, False, ("a", "b"))
    shown = scores.table(scores.Found(devices=devices, rate=rates, order=order)).splitlines()
    ends = [line.rsplit(" ", 1)[1] for line in shown if line.endswith(("pass", "MISS"))]
    assert ends == ["MISS", "pass", "MISS", "MISS"] and shown[-1].endswith("everywhere but at a, b")


def test_what_it_cannot_do_is_refused(capsys):
    with pytest.raises(BenchError, match="rounds must be 1 or more"):
        bench.scores(0)
    assert main(["bench", "scores", "--parts", "step"]) == 1
    assert "there is no part 'step' of bench scores" in capsys.readouterr().err
    assert main(["bench", "scores", "--at", "3"]) == 1
    assert "bench scores takes no --at" in capsys.readouterr().err

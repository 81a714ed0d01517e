"""`maskdit bench encode` at tiny size."""

import json

import pytest

from maskdit import bench
from maskdit.cli import main
from maskdit.performance import encoding
from maskdit.performance.subject import BenchError
from maskdit.performance.timing import Spread
from maskdit.tokenizers.vae import VAE
from tests.encoded import TINY


def test_both_rates_are_measured_and_nothing_is_left(tmp_path, capsys):
    case = encoding.Case(VAE(**TINY), size=16, batch=8, batches=2)
    row = bench.encodes(2, str(tmp_path), str(tmp_path.parent / "row.json"), case)
    assert list(tmp_path.iterdir()) == []
    assert row.bare.median > 0 < row.encode.median and row.share == row.ratio.median
    assert "VAE, 16 pixels, batch 8, images/s" in capsys.readouterr().out
    assert json.loads((tmp_path.parent / "row.json").read_text())["encode"]["share"] == row.share


def test_a_share_below_the_goal_is_told():
    rate = Spread(10.0, 9.0, 11.0)
    shown = [encoding.table(encoding.Row("VAE", rate, rate, Spread(s, s, s), s)).splitlines()[-1] for s in (0.9, 0.89)]
    assert shown[0].endswith("pass") and shown[1].endswith("MISS")


def test_what_it_cannot_do_is_refused(capsys):
    with pytest.raises(BenchError, match="rounds must be 1 or more"):
        bench.encodes(0)
    assert main(["bench", "encode", "--parts", "step"]) == 1
    assert "bench encode takes no --parts" in capsys.readouterr().err

"""The table and the record of an evaluation."""

import json

import numpy as np
from etils import epath

from maskdit.evals import report
from maskdit.evals.report import Figure

FIGURES = [
    Figure("fd", (12.3456789, 14.0), {"bias": 1.5}, unit="", label="FD (tiny)"),
    Figure("pr/precision", (0.5, 0.25), {"held-out": 0.75}, note="one note"),
    Figure("bits", (7.5, 8.5), {}, unit="bits", note="one note"),
]


def test_the_table_has_a_row_for_each_figure_and_each_note_once():
    head, *rows = report.table(FIGURES, 50, ["seed 0", "seed 1"], ["another", "one note"]).splitlines()
    assert head.split("  ")[0] == "50 images" and head.split()[-5:] == ["seed", "1", "mean", "bias", "held-out"]
    assert rows[0].split() == ["FD", "(tiny)", "12.346", "14", "13.173", "1.5"]
    assert rows[1].split() == ["pr/precision", "50.0", "%", "25.0", "%", "37.5", "%", "75.0", "%"]
    assert rows[2].split() == ["bits", "7.500", "bits", "8.500", "bits", "8.000", "bits"]
    assert rows[3:] == ["one note", "another"]
    assert "mean" not in report.table([Figure("fd", (1.0,), {})], 2, ["value"])


def test_the_record_is_json_and_what_is_not_finite_is_null(tmp_path):
    figures = [*FIGURES, Figure("psnr", (float("inf"),), {"of": np.float64("nan")}, unit="")]
    found = report.record(figures, {"seeds": (0, 5)}, 1.234)
    report.write(epath.Path(tmp_path) / "a" / "b", found)
    text = (tmp_path / "a" / "b" / report.FILE).read_text()
    kept = json.loads(text, parse_constant=lambda name: 1 / 0)
    assert kept["metrics"]["fd"] == {"values": [12.3456789, 14.0], "mean": 13.17283945, "bias": 1.5}
    assert kept["metrics"]["psnr"] == {"values": [None], "mean": None, "of": None}
    assert kept["seeds"] == [0, 5] and kept["seconds"] == 1.2 and kept["written"].startswith("20")
    assert {"jax", "numpy", "maskdit"} <= set(kept["versions"])

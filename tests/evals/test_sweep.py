"""Sweeps have the points that their texts say, faults are sentences, and winners are marked."""

import numpy as np
import pytest
from PIL import Image

from maskdit.evals.sweep import SweepError, best, parse, plot, points, table


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("guidance=1:4:0.75", (1.0, 1.75, 2.5, 3.25, 4.0)),
        ("guidance=0:1:0.1", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        ("guidance=1:2:0.4", (1.0, 1.4, 1.8)),
        ("guidance=0:1:0.3333333333", (0.0, 0.3333333333, 0.6666666666, 1.0)),
        ("guidance=0:1:0.33333334", (0.0, 0.33333334, 0.66666668, 1.0)),
        ("guidance=4:1:-1.5", (4.0, 2.5, 1.0)),
        ("guidance=2:2:1", (2.0,)),
        ("temperature = 1e-1, 2", (0.1, 2.0)),
        ("steps=10:50:20", (10, 30, 50)),
        ("step=1e3,2000", (1000, 2000)),
        ("ema=none,0.9999,0.05", ("none", "0.9999", "0.05")),
    ],
)
def test_values_of_a_text(text, values):
    found = parse(text)
    assert found.values == values and [type(value) for value in found.values] == [type(value) for value in values]
    assert found.name == text.partition("=")[0].strip()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance", "a sweep is NAME=START:STOP:STEP or NAME=VALUE,VALUE,.., such as .*; got 'guidance'"),
        ("guidence=1,2", "'guidence' cannot be swept; did you mean 'guidance'"),
        ("seed=1,2", "'seed' cannot be swept; .*"),
        ("guidance=1:4", "has 2 parts between colons; a range is START:STOP:STEP"),
        ("guidance=1:4:0", "has a STEP of 0"),
        ("guidance=1:4:-0.5", "is empty: from 1 a STEP of -0.5 leads away from 4; give 0.5"),
        ("guidance=4:1:0.5", "is empty: from 4 a STEP of 0.5 leads away from 1; give -0.5"),
        ("guidance=0:1:0.001", "has more than 1000 values"),
        ("guidance=0:1:1e-999999", "'1e-999999' in .* is not a number that can be counted with"),
        ("guidance=1,inf", "'inf' in 'guidance=1,inf' is not a number"),
        ("guidance=1,two", "'two' in 'guidance=1,two' is no number"),
        ("guidance=1,,2", "lacks a value"),
        ("guidance=", "lacks a value"),
        ("guidance=1,2,1.0", "names 1.0 more than once"),
        ("steps=1:2:0.5", "steps takes whole numbers from 1 on; got 1.5"),
        ("steps=0,1", "steps takes whole numbers from 1 on; got 0"),
        ("ema=0.9:0.99:0.01", "ema takes names, which have no ranges"),
    ],
)
def test_faults_are_sentences(text, message):
    with pytest.raises(SweepError, match=message):
        parse(text)


def test_points_are_all_combinations():
    found = points([parse("ema=none,0.99"), parse("steps=1,2,3")])
    assert found == [{"ema": ema, "steps": steps} for ema in ("none", "0.99") for steps in (1, 2, 3)]
    assert points([]) == [{}]
    with pytest.raises(SweepError, match="steps is swept twice"):
        points([parse("steps=1"), parse("steps=2")])
    with pytest.raises(SweepError, match="guidance, steps make 1002 points, and 1000 are the most"):
        points([parse("guidance=1:501:1"), parse("steps=1,2")])


ROWS = [
    {"guidance": 1.0, "fid": 20.0, "is": np.float32(90.0), "num": 50},
    {"guidance": 1.5, "fid": float("nan"), "is": np.float32(150.0), "num": 50},
    {"guidance": 2.0, "fid": 7.25, "is": np.float32(200.0), "num": 50},
    {"guidance": 4.0, "fid": 7.25, "num": 50},
]


def test_the_table_marks_the_best_of_each_column_and_names_the_winner():
    head, *rows, last = table(ROWS, higher=("is",)).splitlines()
    assert head.split() == ["guidance", "fid", "is", "num"]
    assert [row.split() for row in rows] == [
        ["1", "20", "90", "50"],
        ["1.5", "nan", "150", "50"],
        ["2", "7.25*", "200*", "50"],
        ["4", "7.25", "50"],
    ]
    assert last == "* best of its column, of 4 points; fid is best at guidance 2: 7.25"


def test_no_value_that_is_not_finite_is_best():
    assert best(ROWS, "fid") == 2 and best(ROWS, "is", ("is",)) == 2 and best(ROWS, "is") == 0
    assert best(ROWS[1:2], "fid") is None and best(ROWS, "kid") is None


def test_the_deviation_of_a_figure_has_no_winner():
    rows = [{"steps": 1, "kid": 2.0, "kid/deviation": 0.1}, {"steps": 2, "kid": 1.0, "kid/deviation": 0.2}]
    assert table(rows).count("*") == 2  # one mark, and what marks are


def colored(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = (abs(pixels[..., 0] - 31) < 20) & (abs(pixels[..., 1] - 119) < 20) & (abs(pixels[..., 2] - 180) < 20)
    return np.argwhere(blue[90:])  # below the legend


def test_the_plot_has_distances_over_scores_and_over_the_setting_without_a_score(tmp_path):
    rows = [{"guidance": g, "fid": 10 * g, "is": 100 - g} for g in (1.0, 2.0, 3.0)]
    plot(tmp_path / "scores.png", rows, ("is",), {"fid": "FID"})
    plot(tmp_path / "setting.png", [{"guidance": row["guidance"], "fid": row["fid"]} for row in rows])
    for name, rising in (("scores", False), ("setting", True)):
        found = colored(tmp_path / f"{name}.png")
        high, low = found[found[:, 0] < np.median(found[:, 0])], found[found[:, 0] > np.median(found[:, 0])]
        assert (high[:, 1].mean() > low[:, 1].mean()) == rising
    with pytest.raises(SweepError, match="there are 1 figures at 1 points of guidance"):
        plot(tmp_path / "one.png", [{"guidance": 1.0, "fid": 1.0}])
    with pytest.raises(SweepError, match="there are 0 figures"):
        plot(tmp_path / "none.png", [{"guidance": 1.0}, {"guidance": 2.0}])

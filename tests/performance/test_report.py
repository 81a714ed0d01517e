import dataclasses
import json

import pytest

from maskdit import config as configs
from maskdit.performance.report import Figure, Report, check_same, hardware, named, ratio, read, shown, versions
from maskdit.performance.subject import BenchError
from maskdit.performance.timing import Spread
from tests.tiny import tiny

SETTING = {"synthetic": False, "at": 0}


def report(figures=(), **changes):
    fields = {
        "name": "tiny",
        "config": json.loads(configs.to_json(tiny())),
        "changed": ["batch: 8 != 16"],
        "setting": SETTING,
        "hardware": hardware(),
        "mesh": {"data": 8},
        "versions": versions(),
        "date": "2026-01-01 00:00 UTC",
        "load": 0.5,
        "notes": ["what counts"],
        "figures": named(figures),
    }
    return Report(**{**fields, **changes})


def test_a_report_survives_its_file(tmp_path):
    spread = Figure.of("step.time", Spread.of([3.0, 1.0, 2.0]), "ms", "of a step")
    before = report([spread, Figure("checkpoint.bytes", 12, "B")])
    before.write(str(tmp_path / "report.json"))
    assert read(str(tmp_path / "report.json")) == before
    assert before.figures["step.time"] == Figure("step.time", 2.0, "ms", 1.0, 3.0, "of a step")


def test_ratios_stand_beside_the_earlier_figures():
    rate, new = Figure("step.images_per_second", 30.0, "images/s"), Figure("loader.first_batch", 1.0, "s")
    still = Figure("step.recompilations", 0, "")
    now = report([rate, new, still])
    earlier = report([dataclasses.replace(rate, value=20.0), still])
    assert [ratio(figure, earlier) for figure in (rate, new, still)] == ["1.500x", "", ""]
    lines = now.table(earlier).splitlines()
    assert any("step.images_per_second" in line and "1.500x" in line for line in lines)
    assert not any("warning" in line for line in lines)
    assert "ratio" not in now.table()


def test_another_machine_is_a_warning_that_names_it():
    other = report(hardware={**hardware(), "device": "NVIDIA H200", "devices": 1}, mesh={"data": 1})
    (warning,) = [line for line in report().table(other).splitlines() if line.startswith("warning")]
    assert "NVIDIA H200" in warning and "data 8 != 1" in warning and "host" not in warning


def test_another_config_is_refused_with_the_differences(tmp_path):
    check_same(tiny(), SETTING, report(), "old.json")
    with pytest.raises(BenchError, match=r"old\.json was measured on another config.*\n  batch: 16 != 8\n"):
        check_same(tiny({"batch": 16}), SETTING, report(), "old.json")
    with pytest.raises(BenchError, match="--synthetic: True != False"):
        check_same(tiny(), {**SETTING, "synthetic": True}, report(), "old.json")


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "another"}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(BenchError, match="--against takes a file"):
        read(str(tmp_path / "other.json"))
    with pytest.raises(BenchError, match=r"missing\.json does not exist"):
        read(str(tmp_path / "missing.json"))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1234, "share", "12.3%"),
        (3 * 2**30, "B", "3 GiB"),
        (512, "B", "512 B"),
        (12345.6, "images/s", "12,346 images/s"),
    ]
    + [(0.012345, "s", "0.01235 s"), (11, "", "11"), (1.0471, "x", "1.047 x")],
)
def test_numbers_are_shown_with_their_units(value, unit, text):
    assert shown(value, unit) == text

"""`maskdit bench import` at tiny size: two processes that import a small file and load it."""

import dataclasses
import json
import signal
import subprocess

import numpy as np
import pytest

from maskdit import bench
from maskdit.cli import main
from maskdit.interop.state_file import open_state
from maskdit.performance import importing
from maskdit.performance.importing import Case, Row
from maskdit.performance.subject import BenchError
from maskdit.performance.timing import Spread

VAE = {"channels": "(32, 32)", "layers_per_block": "1"}
DIT = {"width": "16", "depth": "1", "heads": "2", "input_size": "8", "classes.label": "10"}
TINY = Case(
    overrides=(
        *((f"task.network.{name}", text) for name, text in DIT.items()),
        *((f"task.tokenizer.spec.{name}", text) for name, text in VAE.items()),
    ),
    vae_overrides=tuple((f"tokenizer.{name}", text) for name, text in VAE.items()),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def rows(scratch):
    return bench.imports(1, str(scratch), str(scratch.parent / "rows.json"), TINY)


def test_both_kinds_of_file_are_measured_and_nothing_is_left(rows, scratch):
    assert list(scratch.iterdir()) == []
    assert [row.file for row in rows] == [".pt", ".safetensors"]
    for row in rows:
        assert row.parameters == rows[0].parameters > 4 * 10 * 16
        assert row.peak >= row.before > 10_000_000  # Python alone takes more
        assert row.share == row.peak / row.parameters and row.rate * row.seconds.median == pytest.approx(row.parameters)
        assert row.seconds.median > 0 < row.load.median
    written = json.loads((scratch.parent / "rows.json").read_text())
    assert [(row["file"], row["share"]) for row in written["import"]] == [(row.file, row.share) for row in rows]
    assert written["cores"] and written["jax"]


def test_the_table_holds_the_peak_against_the_goal():
    seconds, load = Spread(10.0, 9.0, 12.0), Spread(2.0, 2.0, 2.0)
    row = Row(".pt", 3_000_000_000, seconds, 3e8, 3_600_000_000, 300_000_000, 1.2, load)
    lines = importing.table([row, dataclasses.replace(row, share=1.3)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    for text in ("3,000 MB", "10.0", "9.0 to 12.0", " 300 ", "3,600 MB", "1.20 pass", "300 MB", "2.0 s"):
        assert text in lines[1]
    assert "1.30 MISS" in lines[2]


@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
def test_the_files_hold_the_same_random_weights(tmp_path, kind):
    state, size = importing._published(TINY.name, TINY.overrides)
    importing._WRITERS[kind](tmp_path / "file", state)
    tensors = open_state(tmp_path / "file").tensors
    assert list(tensors) == list(state)
    count = 0
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        np.testing.assert_array_equal(array, np.asarray(state[name]))
        assert array.dtype == np.float32
        if name != "pos_embed":  # fixed by the layout
            count += array.nbytes
            assert np.unique(array).size > array.size / 2 and np.abs(array).max() <= 0.1
    assert count == size


@pytest.mark.parametrize("stop", [KeyboardInterrupt, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch, stop):
    def run(*args, **kwargs):
        assert list(tmp_path.glob("*/vae/frozen")) or list(tmp_path.glob("*/vae/checkpoints"))
        if isinstance(stop, signal.Signals):
            signal.raise_signal(stop)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        importing.measure(1, str(tmp_path), TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_import_that_fails_is_told(tmp_path):
    with pytest.raises(BenchError, match=r"import failed: maskdit import: .*no-such\.pt"):
        importing._run([TINY.name, str(tmp_path / "no-such.pt"), str(tmp_path / "out")])


def test_bad_input_is_a_sentence(tmp_path, monkeypatch, capsys):
    with pytest.raises(BenchError, match=r"no folder .*nowhere: --scratch"):
        importing.measure(1, str(tmp_path / "nowhere"), TINY)
    monkeypatch.setattr(importing, "_MARGIN", 1 << 60)
    with pytest.raises(BenchError, match="GB are free: make room, or name a folder"):
        importing.measure(1, str(tmp_path), TINY)
    for argument in ("--parts=step", "--synthetic", "--config.batch=3"):
        assert main(["bench", "import", argument]) == 1
        assert f"bench import takes no {argument.partition('=')[0]}" in capsys.readouterr().err
    assert main(["bench", "import", "--rounds", "0"]) == 1
    assert main(["bench", "import", "--json", str(tmp_path / "no" / "a.json")]) == 1
    assert "folder does not exist" in capsys.readouterr().err

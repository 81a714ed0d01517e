"""The one-GPU benchmark: its driver with workers that answer from a list, and the JAX worker on a CPU."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Cond, Plan, bind
from maskdit.interop import dit, maskdit
from maskdit.interop.rules import import_params
from maskdit.performance.gpu import plan
from maskdit.performance.gpu.__main__ import main
from maskdit.performance.gpu.driver import OURS, TORCH, Worker, drive
from maskdit.performance.gpu.phases import phases
from maskdit.performance.gpu.report import table

ACTOR = """
import json, os, sys
script = json.loads(sys.argv[1])
for line in sys.stdin:
    asked = json.loads(line)
    if script.get("dies", "never") in (asked["do"], asked.get("workload", {}).get("name")):
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)
    if script.get("hangs") != asked["do"]:
        print(json.dumps(script.get(asked["do"], {"error": "ValueError: no such thing"})), flush=True)
"""
ANSWERS = {
    "hello": {"versions": {"jax": "1"}, "device": "NVIDIA H200", "dtype": "bfloat16"},
    "ceilings": {"flops": 7.9e14, "bytes": 4e12},
    "compile": {"trace": 1.0, "compile": 30.0, "memory": 2**35, "macs": 10**11},
    "time": {"seconds": 0.2, "memory": 2**35, "macs": 10**11},
    "check": {"loss": 1.0, "grad_norm": 2.0, "dtype": "bfloat16"},
    "drop": {"peak": 2**35},
    "published": {"seconds": 0.3, "memory": 2**35},
    "sample": {"compile": 5.0, "seconds": [2.0, 2.1, 2.2]},
}


def actor(**changed):
    return [sys.executable, "-c", ACTOR, json.dumps({**ANSWERS, **changed})], {}


def run(out, workers, budget=5000.0):
    """The full plan with actors; gives the lines of result.jsonl and the table."""
    found = drive(plan.full(), phases(plan.full()), workers, out, budget, say=lambda line: None)
    lines = [json.loads(line) for line in (out / "result.jsonl").read_text().splitlines()]
    assert str(lines) == str(list(found.values()))  # text, as nan differs from nan
    return lines, table(plan.full(), found)


def line_of(text, begin):
    (found,) = [line for line in text.splitlines() if line.startswith(begin)]
    return found


def test_every_phase_leaves_a_line_in_order(tmp_path):
    lines, report = run(tmp_path, {OURS: actor(), TORCH: actor(time={"seconds": 0.25, "memory": 2**34})})
    assert [line["phase"] for line in lines] == [phase.name for phase in phases(plan.full())]
    assert not any("skipped" in line for line in lines)
    assert len(lines[4][OURS]["dit-xl2-256"]["seconds"]) == plan.full().rounds
    # batch 128 in 0.2 s, 6e11 FLOP an image: 640 img/s, 384 TFLOP/s
    row = line_of(report, "dit-xl2-256         ours      128    200.00")
    assert row.split()[6:10] == ["640.0", "38.8%", "48.6%", "32.0"]
    assert "1.25x   at least 1.00x" in line_of(report, "dit-xl2-256: ours / PyTorch compiled")
    assert "6.00x" in line_of(report, "dit-xl2-256: ours / PyTorch as published")  # 640 img/s to 32 in 0.3 s
    assert "DIFFER" not in report and "COUNT" not in report


def test_what_does_not_fit_is_skipped_and_the_last_phase_kept_room_for(tmp_path):
    lines, report = run(tmp_path, {OURS: actor()}, budget=60)
    by_name = {line["phase"]: line for line in lines}
    assert "needs about 190 s and 15 s for 'end'" in by_name["compile"]["skipped"]
    assert "--peers" in by_name["equality"]["skipped"]
    assert by_name["dit"][OURS] and by_name["end"][OURS]
    assert "skipped" in by_name["maskdit"]  # 50 s would fit, 50 and 15 do not
    assert "dit-xl2-256 " in report and "torch: did not run" in report


@pytest.mark.parametrize("gap, equal", [(0.009, True), (0.02, False), (float("nan"), False)])
def test_unequal_losses_are_told_beside_every_figure_of_the_system(tmp_path, gap, equal):
    check = {"loss": 1.0, "grad_norm": 2.0 * (1 + gap), "dtype": "bfloat16"}
    _, report = run(tmp_path, {OURS: actor(check=check), TORCH: actor()})
    assert ("DOES NOT COUNT, losses differ: grad_norm" in line_of(report, "dit-xl2-256: ours / PyTorch c")) != equal
    assert ("LOSSES DIFFER" in line_of(report, "maskdit-xl2-50      torch")) != equal


def test_a_dead_worker_costs_its_own_rows_only(tmp_path):
    lines, report = run(tmp_path, {OURS: actor(dies="maskdit-xl2-50"), TORCH: actor()})
    by_name = {line["phase"]: line for line in lines}
    fault = "the ours worker ended during 'compile' (exit code 3: out of memory)"
    assert by_name["compile"][OURS]["maskdit-xl2-50"] == {"error": fault}
    assert by_name["compile"][OURS]["dit-xl2-256"] == ANSWERS["compile"]
    assert by_name["dit"]["skipped"] == by_name["end"]["skipped"] == fault
    assert by_name["published"][TORCH]["seconds"] == 0.3
    assert "TF32, as published" in report


def test_a_peer_that_dies_leaves_our_figures(tmp_path):
    lines, report = run(tmp_path, {OURS: actor(), TORCH: actor(dies="time")})
    fault = "the torch worker ended during 'time' (exit code 3: out of memory)"
    assert lines[4][TORCH]["dit-xl2-256"]["error"] == fault
    assert fault in line_of(report, "dit-xl2-256         torch")
    assert "640.0" in line_of(report, "maskdit-xl2-50      ours")
    assert "ours / PyTorch compiled" not in report


def test_a_silent_worker_is_given_up(tmp_path):
    command, environment = actor(hangs="time")
    worker = Worker(OURS, command, tmp_path / "log", environment)
    assert "versions" in worker.ask("hello", {}, timeout=30)
    assert worker.ask("time", {}, timeout=1) == {"error": "the ours worker did not answer 'time' within 1 s"}
    assert worker.ask("hello", {}, timeout=30)["error"] == worker.fault
    worker.close()


def test_the_driver_imports_nothing_that_a_worker_brings():
    code = "import sys, maskdit.performance.gpu.__main__; print({'jax', 'numpy', 'flax', 'torch'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "set()\n"


def test_arguments_are_refused_with_a_sentence(tmp_path, capsys):
    for given, told in (
        (["--peers", str(tmp_path)], "DiT/models.py"),
        (["--phases", "dit,sleep"], "no phases ['sleep']"),
        (["--budget", "0"], "number of seconds"),
    ):
        with pytest.raises(SystemExit):
            main(["--tiny", "--out", str(tmp_path / "out"), *given])
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_tiny_run_from_start_to_end(tmp_path, capsys):
    chosen = ["equality", "dit", "checkpoint", "end"]
    assert main(["--tiny", "--budget", "200", "--out", str(tmp_path), "--phases", ",".join(chosen)]) == 0
    lines = {line["phase"]: line for line in map(json.loads, (tmp_path / "result.jsonl").read_text().splitlines())}
    assert list(lines) == ["start", *chosen]
    assert lines["start"][OURS]["versions"]["jax"] == jax.__version__
    row = lines["dit"][OURS]["dit-tiny"]
    assert row["macs"] == 474112 and len(row["seconds"]) == 2 and min(row["seconds"]) > 0
    stored = lines["checkpoint"][OURS]
    assert 0 < stored["stall"] <= stored["total"] and stored["state_bytes"] > 4 * 4 * 40_000
    told = capsys.readouterr().out
    assert told.startswith("without --peers: our figures alone") and told.endswith((tmp_path / "table.txt").read_text())


class Recorded:
    """Draws from a file."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def normal(self, name, shape):
        assert self.arrays[name].shape == tuple(shape)
        return self.arrays[name]

    def integers(self, name, shape, low, high):
        return self.normal(name, shape)

    uniform = normal


@pytest.mark.slow
@pytest.mark.parametrize("work", [plan.tiny().dit, plan.tiny().maskdit[1]], ids=lambda work: work.name)
def test_another_implementation_is_given_all_that_the_first_step_used(tmp_path, work):
    """The files that `check` writes reproduce its loss without the training step, and come back as the same weights."""
    from maskdit.performance.gpu.jax_worker import Ours, task_of

    ours, fields = Ours(), dataclasses.asdict(work)
    told = ours.check(fields, str(tmp_path))
    again = ours.check(fields, str(tmp_path), weights=str(tmp_path / "ours.npz"))
    np.testing.assert_allclose([again["loss"], again["grad_norm"]], [told["loss"], told["grad_norm"]], rtol=1e-6)

    task, files = task_of(work, "none"), dict(np.load(tmp_path / "draws.npz"))
    x, labels = jnp.zeros((1, *task.layout.shape)), {dit.LABEL: jnp.asarray(files["labels"])}
    empty = Cond(labels={dit.LABEL: jnp.zeros((1,), jnp.int32)})
    like = jax.eval_shape(task.network.init, jax.random.key(0), x, jnp.ones((1,)), empty)["params"]
    rows = (dit if work.system == "dit" else maskdit).table(work.published)
    params = import_params(rows, dict(np.load(tmp_path / "ours.npz")), like)
    if work.system == "dit":
        draw = Recorded(t=files["t"], noise=files["noise"])
    else:
        levels = task.process.noise_levels
        normal = (np.log(files["sigma"]) - levels.mean) / levels.std
        draw = Recorded(sigma=normal, noise=files["noise"], mask=np.argsort(files["order"], axis=1) / work.tokens)

    @jax.jit
    def loss(params, z, cond):
        predict = bind(task.network, params)
        return task.process.loss(predict, z, cond, draw, step=jnp.zeros((), int), plan=Plan(work.keep)).value.mean()

    np.testing.assert_allclose(loss(params, files["z"], Cond(labels=labels)), told["loss"], rtol=1e-5)
    assert all(np.abs(value).max() > 0 for value in jax.tree.leaves(params)), "timed with zeros"

"""Programs of a config compiled ahead of time: for this machine's devices, and, with the TPU compiler, for a slice."""

import dataclasses
import subprocess
import sys

import jax
import pytest

from maskdit import config as configs
from maskdit.performance import ahead, programs, slices
from maskdit.performance.ahead import Estimate, Moved
from maskdit.performance.topology import GENERATIONS, Topology, TopologyError, topology
from maskdit.training.mesh import MeshShape

from ..tiny import tiny


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return configs.build(tiny({"mesh.data": 2, "mesh.fsdp": 4, "batch": 16, "evaluation.images": 4}))


@pytest.fixture
def place():
    """A v5e slice whose devices are this machine's."""
    return Topology("v5e:2x4", GENERATIONS["v5e"], jax.devices())


ESTIMATE = Estimate(
    name="training step",
    images=16,
    needed=None,
    arguments=2**30,
    temporaries=2**31,
    peak=3 * 2**30,
    moved=(Moved("all-gather", True, 3, 2**31, 2**30), Moved("reduce-scatter", False, 4, 2**30, 2**29)),
    reduced=(("jit(train_step)/blocks_*/fc1", 2**24),),
    cycles={"products": 90_000_000, "copies": 10_000_000},
    missing={"synchronous reduce-scatter": 4},
    flops=1e12,
    seconds=1.0,
)


def test_every_plan_and_the_sampler_are_programs(run):
    mesh = run.mesh.make()
    steps = programs.training_steps(run, mesh)
    assert [one.name for one in steps] == ["training step, 8 tokens kept", "training step"]
    assert {one.images for one in steps} == {16} and steps[0].macs < steps[1].macs
    made = programs.sampling(run, mesh, 8)
    assert made.name == "sampling, 10 network calls" and made.images == 8
    kernel = {path: (shape, spec) for path, shape, spec in programs.parameter_shardings(run, mesh)}
    assert kernel["network/blocks_0/mlp/fc1/kernel"][1][0] == "fsdp"
    with pytest.raises(ValueError, match="multiple of 8"):
        programs.training_steps(dataclasses.replace(run, batch=12), mesh)


@pytest.mark.parametrize("name", ["maskgit_imagenet256", "enat_imagenet256", "rar_imagenet256", "maskgen"])
def test_programs_of_token_generators_are_traced(name):
    made = configs.build(configs.load(f"{name}:smoke", {"mesh.data": 1, "mesh.fsdp": 1}))
    mesh = made.mesh.make(jax.devices()[:1])
    steps = programs.training_steps(made, mesh)
    assert all(one.macs > 0 for one in steps) and ("masked" in steps[0].name) == (name == "enat_imagenet256")
    drawn = programs.sampling(made, mesh, 2)
    assert drawn.images == 2 and drawn.macs > 0 and drawn.passes > made.task.layout.tokens / 4


def test_a_program_is_compiled_once_and_kept_by_its_text(run, monkeypatch):
    mesh = run.mesh.make()
    traced = programs.training_steps(run, mesh, latents=True)[0]
    found = ahead.estimate(traced, mesh)
    assert found.peak > found.arguments > 0 and found.flops == 6 * traced.macs * 16 / 8
    assert any(moved.kind == "reduce-scatter" and moved.bytes > 0 for moved in found.moved)

    def compiles(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(ahead, "compiled", compiles)
    assert ahead.estimate(programs.training_steps(run, mesh, latents=True)[0], mesh) == found
    other = dataclasses.replace(run, mesh=MeshShape(data=8))
    with pytest.raises(AssertionError, match="again"):
        ahead.estimate(programs.training_steps(other, other.mesh.make(), latents=True)[0], other.mesh.make())


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 19.30G of 15.75G hbm. Exceeded by 3.55G.",
        "RESOURCE_EXHAUSTED: E1000: total memory required for HLO temporaries (19.30G) exceeds available HBM (15.75G)",
    ],
)
def test_a_program_that_is_too_large_says_what_to_change(run, place, monkeypatch, message):
    def compiles(*_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(ahead, "compiled", compiles)
    mesh = run.mesh.make()
    found = ahead.estimate(programs.training_steps(run, mesh)[0], mesh)
    assert found.needed == 19.30
    monkeypatch.setattr(slices, "_limit", lambda _: 15.75)
    text = slices.text(found, place, mesh, run)
    assert "does not fit: needs 19.30 of 15.75 GiB" in text and "task.network.remat=weights" in text


def test_an_estimate_is_told_with_what_it_leaves_out(run, place):
    text = slices.text(ESTIMATE, place, run.mesh.make(), run)
    assert "3.00 of" in text and "100.0M estimated: products 90.0M, copies 10.0M" in text
    assert "4 synchronous reduce-scatter" in text and "loss EDM" in text
    assert "summed whole on each chip: jit(train_step)/blocks_*/fc1, 16 MiB" in text
    # 100M cycles at 1.5 GHz, and half a GiB of synchronous collectives at 90 GB/s
    assert ESTIMATE.milliseconds(1.5, 9e10) == pytest.approx(100 / 1.5 + 2**29 / 9e10 * 1e3)
    assert "derived 72.6 ms" in text


def test_a_sweep_names_the_best_that_fits(place, monkeypatch):
    answers = {
        ("1", "none"): dataclasses.replace(ESTIMATE, needed=20.0),
        ("1", "full"): dataclasses.replace(ESTIMATE, cycles={"products": 110_000_000}),
        ("8", "none"): ESTIMATE,
        ("8", "full"): dataclasses.replace(ESTIMATE, cycles={"products": 120_000_000}),
    }
    asked = []

    def estimate(traced, mesh):
        asked.append(traced)
        return answers[str(mesh.shape["fsdp"]), traced]

    monkeypatch.setattr(programs, "training_steps", lambda run, mesh, latents: [run.task.network.remat])
    monkeypatch.setattr(slices, "estimate", estimate)
    tried = {"mesh": ["8x1x1", "1x8x1", "3x1x1"], "remat": ["none", "full"], "batch": ["16"]}
    lines = list(slices.sweep(tiny({"batch": 16}), place, True, (), tried))
    assert len(asked) == 4 and len(lines) == 7
    assert "needs 20.00" in lines[0] and "8 devices" in lines[4]
    assert lines[-1].endswith(
        "--config.mesh.data=1 --config.mesh.fsdp=8 --config.mesh.tensor=1 --config.task.network.remat=none "
        "--config.batch=16"
    )
    with pytest.raises(ValueError, match="mesh, remat and batch; got depth"):
        list(slices.sweep(tiny(), place, True, (), {"depth": ["1"]}))
    with pytest.raises(ValueError, match="such as 1x8x1; got '8'"):
        list(slices.sweep(tiny(), place, True, (), {"mesh": ["8"]}))


@pytest.mark.parametrize(
    ("name", "told"), [("v5e:3x3", "v5e has 1x1, 2x2"), ("v9:2x2", "generation"), ("v5e", "such as v5e:4x4")]
)
def test_slices_that_do_not_exist_are_refused(name, told):
    with pytest.raises(TopologyError, match=told):
        topology(name)


@pytest.mark.slow
def test_a_slice_is_compiled_for_on_this_machine(tmp_path):
    pytest.importorskip("libtpu")
    overrides = ["--config.mesh.data=1", "--config.mesh.fsdp=-1", "--config.batch=8", "--config.steps=1"]
    command = [sys.executable, "-m", "maskdit.cli", "describe", "maskdit_emoji:smoke", "--topology", "v5e:2x2"]
    done = subprocess.run(
        [*command, "--only", "training", *overrides],
        capture_output=True,
        text=True,
        env={"PATH": "", "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of 15.75 GiB at its peak: fits" in done.stdout and "M estimated:" in done.stdout
    assert "reduce-scatter" in done.stdout and "network/blocks_*/mlp/fc1/kernel" in done.stdout

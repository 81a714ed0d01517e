"""The phases, in the order of their importance. Estimates are for an H200."""

import concurrent.futures
import pathlib
from collections.abc import Sequence
from typing import Any

from maskdit.performance.gpu.driver import OURS, TORCH, Bench, Found, Phase
from maskdit.performance.gpu.plan import Plan, Workload

TOLERANCE = {"bfloat16": 1e-2, "float32": 1e-4}
"""Largest relative difference in loss and gradient norm of two implementations, by the dtype of the products."""
BOTH = (OURS, TORCH)


def phases(plan: Plan) -> tuple[Phase, ...]:
    """All phases of a plan."""
    found = (
        Phase("start", 30, _start, ()),
        Phase("ceilings", 15, _ceilings),
        Phase("compile", 190, _compile, ()),
        Phase("equality", 45, _equality, BOTH),
        Phase("dit", 40, lambda bench: _train(bench, (bench.plan.dit,), (bench.plan.dit,))),
        Phase("maskdit", 50, lambda bench: _train(bench, bench.plan.maskdit, bench.plan.maskdit[:2])),
        Phase("published", 25, _published, (TORCH,)),
        Phase("sample", 75, lambda bench: {OURS: _sample(bench, OURS)}),
        Phase("small", 60, lambda bench: _train(bench, bench.plan.small, ())),
        Phase("checkpoint", 60, _checkpoint),
        Phase("loader", 60, _loader),
        Phase("again", 20, lambda bench: {OURS: bench.ask(OURS, "again", bench.plan.dit)}),
        Phase("decode", 25, _decode),
        Phase("sample-torch", 90, lambda bench: {TORCH: _sample(bench, TORCH)}, (TORCH,)),
        Phase("small-torch", 150, lambda bench: _train(bench, (), bench.plan.small), (TORCH,)),
        Phase("trace", 20, _trace),
        Phase("end", 15, lambda bench: _train(bench, (bench.plan.dit,), ())),
    )
    return tuple(Phase(phase.name, phase.seconds * plan.scale, phase.run, phase.needs) for phase in found)


def _start(bench: Bench) -> Found:
    """Versions and devices; both workers import everything at once."""
    folder = bench.scratch / "cache"
    folder.mkdir()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = {name: pool.submit(bench.ask, name, "hello", folder=str(folder)) for name in bench.workers}
        return {name: answer.result() for name, answer in asked.items()}


def _ceilings(bench: Bench) -> Found:
    fields: dict[str, Any] = {"product": bench.plan.product, "copied": bench.plan.copied}
    return {name: bench.ask(name, "ceilings", **fields) for name in bench.workers if bench.has(name)}


def _compile(bench: Bench) -> Found:
    """Both compile at the same time; the last phase tells whether tuning under load did harm."""

    def all_of(name: str, works: Sequence[Workload]) -> Found:
        return {work.name: bench.ask(name, "compile", work) for work in works if bench.has(name)}

    main = bench.plan.main
    works = {OURS: main, TORCH: main[:3]}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = {name: pool.submit(all_of, name, works[name]) for name in bench.workers if bench.has(name)}
        return {name: answer.result() for name, answer in asked.items()}


def _equality(bench: Bench) -> Found:
    """Our weights there, then theirs here: the first training step must have the same loss and gradient norm."""
    found: Found = {}
    for work in (bench.plan.dit, bench.plan.maskdit[1]):
        folder = bench.scratch / work.name
        folder.mkdir()
        where = {"folder": str(folder)}
        ways: list[tuple[str, Found, Found]] = []
        mine = bench.ask(OURS, "check", work, **where)
        ways.append(("our weights there", mine, bench.ask(TORCH, "check", work, **where, own=False)))
        theirs = bench.ask(TORCH, "check", work, **where, own=True)
        back = bench.ask(OURS, "check", work, **where, weights=str(folder / "theirs.npz"))
        ways.append(("their weights here", back, theirs))
        found[work.system] = _agreement(ways)
        for file in pathlib.Path(folder).iterdir():
            file.unlink()
    return found


def _agreement(ways: Sequence[tuple[str, Found, Found]]) -> Found:
    told: Found = {"equal": True, "ways": []}
    for name, ours, theirs in ways:
        if errors := [answer["error"] for answer in (ours, theirs) if "error" in answer]:
            return {"equal": False, "why": errors[0], "error": errors[0]}
        gaps = {key: abs(ours[key] - theirs[key]) / max(abs(theirs[key]), 1e-30) for key in ("loss", "grad_norm")}
        told["ways"].append({"way": name, **gaps, OURS: ours, TORCH: theirs})
        for key, gap in gaps.items():
            if not gap < TOLERANCE[ours["dtype"]]:  # also where it is not a number
                told["equal"] = False
                told["why"] = f"{key} {ours[key]:.6g} here, {theirs[key]:.6g} there ({name})"
    return told


def _train(bench: Bench, ours: Sequence[Workload], theirs: Sequence[Workload]) -> Found:
    """Turns of steps, ours and theirs alternating, their order reversed every round; then both free their memory."""
    turns = [(OURS, work) for work in ours] + [(TORCH, work) for work in theirs]
    turns = [(name, work) for name, work in turns if bench.has(name)]
    found: Found = {name: {} for name, _ in turns}
    for name, work in turns:
        first = bench.ask(name, "time", work, steps=bench.plan.warm)
        found[name][work.name] = {**first, "batch": work.batch, "seconds": []}
    for number in range(bench.plan.rounds):
        for name, work in turns if number % 2 == 0 else turns[::-1]:
            row = found[name][work.name]
            if "error" in row:
                continue
            answer = bench.ask(name, "time", work, steps=bench.plan.steps)
            row["seconds"] += [answer["seconds"]] if "seconds" in answer else []
            row |= {key: value for key, value in answer.items() if key != "seconds"}
    for name in found:
        found[name]["memory"] = bench.ask(name, "drop")
    return found


def _published(bench: Bench) -> Found:
    fields: dict[str, Any] = {"batch": bench.plan.published_batch, "steps": bench.plan.steps}
    return {TORCH: {"batch": fields["batch"], **bench.ask(TORCH, "published", bench.plan.dit, **fields)}}


def _sample(bench: Bench, name: str) -> list[Found]:
    """Two lengths, to see that time is proportional to steps."""
    found: list[Found] = []
    for batch in bench.plan.sample_batches:
        repeats = 10 if batch == 1 else 3
        for steps in bench.plan.sample_steps[: 2 if name == OURS else 1]:
            answer = bench.ask(name, "sample", bench.plan.dit, batch=batch, steps=steps, repeats=repeats)
            found.append({"batch": batch, "steps": steps, **answer})
    return found


def _decode(bench: Bench) -> Found:
    side, batch = bench.plan.decode
    fields: dict[str, Any] = {"side": side, "batch": batch, "autoencoder": dict(bench.plan.autoencoder), "repeats": 3}
    return {OURS: {"batch": batch, **bench.ask(OURS, "decode", **fields)}}


def _checkpoint(bench: Bench) -> Found:
    found: Found = {}
    for name in (worker for worker in BOTH if bench.has(worker)):
        folder = bench.scratch / f"checkpoint-{name}"
        folder.mkdir()
        found[name] = bench.ask(name, "checkpoint", bench.plan.dit, folder=str(folder))
        bench.ask(name, "drop")
    return found


def _loader(bench: Bench) -> Found:
    plan = bench.plan
    fields: dict[str, Any] = {"folder": str(bench.scratch / "records"), "records": plan.records}
    fields |= {"workers": list(plan.workers), "steps": plan.steps}
    return {OURS: bench.ask(OURS, "loader", plan.small[0], **fields)}


def _trace(bench: Bench) -> Found:
    return {OURS: bench.ask(OURS, "trace", bench.plan.dit, folder=str(bench.out / "trace"))}

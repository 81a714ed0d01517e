"""The table at the end: rates, shares of the ceilings, ratios."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from maskdit.performance import peaks
from maskdit.performance.gpu.driver import OURS, TORCH, Found
from maskdit.performance.gpu.plan import Plan, Workload

DRIFT = 0.03
"""Largest change of the first workload's rate between its first and its last measurement in a quiet run."""
_GIB = 2.0**30


def table(plan: Plan, found: Mapping[str, Found]) -> str:
    """The report of a run.

    Args:
      plan: what was run.
      found: what each phase found.
    """
    parts = (_start(found), _steps(plan, found), _samples(plan, found), _storage(found), _ratios(plan, found))
    return "\n\n".join("\n".join(lines) for lines in map(list, parts) if lines)


def rate(plan: Plan, found: Mapping[str, Found], worker: str, name: str) -> float | None:
    """Images per second of a workload's training step; None where it was not measured."""
    row = _row(found, worker, name)
    return row["batch"] / statistics.median(row["seconds"]) if row and row["seconds"] else None


def _row(found: Mapping[str, Found], worker: str, name: str) -> Found | None:
    for phase in ("dit", "maskdit", "small", "small-torch"):
        row = found.get(phase, {}).get(worker, {}).get(name)
        if row is not None:
            return row
    return None


def _start(found: Mapping[str, Found]) -> Iterator[str]:
    for name in (OURS, TORCH):
        told = found.get("start", {}).get(name)
        if told is None:
            yield f"{name}: did not run"
        elif "error" in told:
            yield f"{name}: {told['error']}"
        elif "versions" in told:
            versions = ", ".join(f"{package} {version}" for package, version in told["versions"].items())
            yield f"{name}: {told['device']}; {versions}{_ceiling(found, name)}"
    if (drift := _drift(found)) is not None:
        noisy = "" if drift <= DRIFT else f": more than {DRIFT:.0%}, this run is noisy"
        yield f"the first workload's rate, measured again at the end, differs by {drift:.1%}{noisy}"


def _ceiling(found: Mapping[str, Found], name: str) -> str:
    told = found.get("ceilings", {}).get(name, {})
    if "flops" not in told:
        return ""
    return f"; bfloat16 products {told['flops'] / 1e12:.4g} TFLOP/s, copies {told['bytes'] / 1e12:.3g} TB/s"


def _drift(found: Mapping[str, Found]) -> float | None:
    first, last = (found.get(phase, {}).get(OURS, {}) for phase in ("dit", "end"))
    for name, row in first.items():
        again = last.get(name, {}).get("seconds") if name != "memory" else None
        if again and row["seconds"]:
            return abs(statistics.median(again) / statistics.median(row["seconds"]) - 1)
    return None


def _steps(plan: Plan, found: Mapping[str, Found]) -> Iterator[str]:
    """A row for each training step that was asked for."""
    kind = found.get("start", {}).get(OURS, {}).get("device", "")
    chip, measured = peaks.chip(kind), found.get("ceilings", {}).get(OURS, {}).get("flops")
    sheet = f"MFU of {chip.flops / 1e12:.0f}" if chip else "MFU (sheet)"
    yield (
        f"{'training step':<20}{'by':<7}{'batch':>6}{'ms':>10}{'min':>10}{'max':>10}{'img/s':>9}"
        f"{sheet:>13}{'of measured':>13}{'peak GiB':>10}{'compile s':>11}"
    )
    for worker, works in ((OURS, (*plan.main, *plan.small)), (TORCH, (*plan.main[:3], *plan.small))):
        for work in works:
            row = _row(found, worker, work.name)
            if row is None:
                continue
            if not row["seconds"]:
                yield f"{work.name:<20}{worker:<7}{row['batch']:>6}  {row.get('error', 'not timed')}"
                continue
            images = row["batch"] / statistics.median(row["seconds"])
            told = {**found.get("compile", {}).get(worker, {}).get(work.name, {}), **row}
            macs = (_row(found, OURS, work.name) or {}).get("macs")
            of_sheet = f"{peaks.mfu(images, macs, chip.flops):.1%}" if chip and macs else "-"
            of_measured = f"{peaks.mfu(images, macs, measured):.1%}" if measured and macs else "-"
            seconds = [statistics.median(row["seconds"]), min(row["seconds"]), max(row["seconds"])]
            times = "".join(f"{1e3 * value:>10.2f}" for value in seconds)
            memory, compiled = _number(told.get("memory"), _GIB), _number(told.get("compile"))
            yield (
                f"{work.name:<20}{worker:<7}{row['batch']:>6}{times}{images:>9.1f}{of_sheet:>13}{of_measured:>13}"
                f"{memory:>10}{compiled:>11}{_note(told)}{_unequal(found, work)}"
            )
    told = found.get("published", {}).get(TORCH, {})
    if "seconds" in told:
        images = told["batch"] / told["seconds"]
        yield (
            f"{plan.dit.name:<20}{'eager':<7}{told['batch']:>6}{1e3 * told['seconds']:>10.2f}{'':>20}{images:>9.1f}"
            f"{'':>26}{_number(told['memory'], _GIB):>10}  TF32, as published"
        )


def _note(row: Found) -> str:
    notes = [f"remat {row['remat']}"] if row.get("remat", "none") != "none" else []
    notes += ["compiled from the cache"] if row.get("from_cache") else []
    notes += [row["attention"]] if "attention" in row else []
    return "".join(f"  {note}" for note in notes)


def _unequal(found: Mapping[str, Found], work: Workload) -> str:
    """What to say beside a figure of a system whose two implementations were found to differ."""
    told = found.get("equality", {}).get(work.system)
    return "" if told is None or told["equal"] else f"  LOSSES DIFFER: {told['why']}"


def _number(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:.1f}"


def _samples(plan: Plan, found: Mapping[str, Found]) -> Iterator[str]:
    rows = [(OURS, found.get("sample", {}).get(OURS, [])), (TORCH, found.get("sample-torch", {}).get(TORCH, []))]
    if any(listed for _, listed in rows):
        yield f"{'sampling, guided':<20}{'by':<7}{'batch':>6}{'steps':>7}{'s':>9}{'max':>9}{'img/s at 250 steps':>20}"
    for worker, listed in rows:
        for row in listed:
            begin = f"{plan.dit.name:<20}{worker:<7}{row['batch']:>6}{row['steps']:>7}"
            if "error" in row:
                yield f"{begin}  {row['error']}"
                continue
            median = statistics.median(row["seconds"])
            images = row["batch"] / median * row["steps"] / 250
            yield f"{begin}{median:>9.3f}{max(row['seconds']):>9.3f}{images:>20.2f}"
    told = found.get("decode", {}).get(OURS, {})
    if "seconds" in told:
        yield f"decoding latents to images: {told['batch'] / statistics.median(told['seconds']):.1f} img/s"


def _storage(found: Mapping[str, Found]) -> Iterator[str]:
    for name, told in found.get("checkpoint", {}).items():
        if isinstance(told, Mapping) and "stall" in told:
            yield (
                f"checkpoint, {name}: {told['bytes'] / 1e9:.2f} GB, training waits {told['stall']:.2f} s, saved in "
                f"{told['total']:.2f} s, restored in {told['restore']:.2f} s"
            )
    told = found.get("loader", {}).get(OURS, {})
    for row in told.get("loaders", []):
        by = f"{row['workers']} processes" if row["workers"] else f"{row['threads']} threads"
        yield (
            f"loader, {told['size']}-pixel PNG, {by}: {row['images_per_second']:.0f} img/s, first batch after "
            f"{row['first']:.1f} s; a step takes {row['starvation']:.2f}x of one with a resident batch"
        )
    told = found.get("again", {}).get(OURS, {})
    if "compile" in told:
        yield f"compiled again: {told['trace']:.1f} s to trace, {told['compile']:.1f} s to read from the cache"


def _ratios(plan: Plan, found: Mapping[str, Found]) -> Iterator[str]:
    """Each with what it should at least, or at most, be on an H200."""
    plain, half, quarter = plan.dit.name, plan.maskdit[1].name, plan.maskdit[2].name
    own = plan.maskdit[0].name

    def of(worker: str, name: str) -> float | None:
        return rate(plan, found, worker, name)

    published = found.get("published", {}).get(TORCH, {})
    eager = published["batch"] / published["seconds"] if "seconds" in published else None
    rows: list[tuple[str, float | None, float | None, str, Workload | None]] = [
        (f"{plain}: ours / PyTorch compiled", of(OURS, plain), of(TORCH, plain), "1.00", plan.dit),
        (f"{plain}: ours / PyTorch as published", of(OURS, plain), eager, "3.00", plan.dit),
        (f"{half}: ours / PyTorch compiled", of(OURS, half), of(TORCH, half), "1.00", plan.maskdit[1]),
        (f"{half} / own {plain}", of(OURS, half), of(OURS, plain), "1.65", None),
        (f"{half} / own {own}", of(OURS, half), of(OURS, own), "1.75", None),
        (f"{quarter} / own {plain}", of(OURS, quarter), of(OURS, plain), "2.50", None),
        (f"{half} / {own}, both PyTorch", of(TORCH, half), of(TORCH, own), "", None),
    ]
    mine, theirs = _speeds(found, "sample", OURS), _speeds(found, "sample-torch", TORCH)
    for batch, steps in sorted(mine.keys() & theirs.keys()):
        name = f"sampling, batch {batch}: ours / PyTorch compiled"
        rows.append((name, mine[batch, steps], theirs[batch, steps], "1.00", plan.dit))
    for name, above, below, least, work in rows:
        if above is not None and below is not None:
            aim = f"   at least {least}x" if least else ""
            yield f"{name:<52}{above / below:>8.2f}x{aim}{_trust(found, work)}"
    less, more = ((_row(found, OURS, name) or {}).get("memory") for name in (half, plain))
    if less and more:
        yield f"{f'{half} / own {plain}, memory':<52}{less / more:>8.2f}x   at most 0.78x"


def _trust(found: Mapping[str, Any], work: Workload | None) -> str:
    """Whether a ratio of two implementations counts."""
    if work is None:
        return ""
    told = found.get("equality", {}).get(work.system)
    if told is None:
        return "   equality of loss not checked in this run"
    return "" if told["equal"] else f"   DOES NOT COUNT, losses differ: {told['why']}"


def _speeds(found: Mapping[str, Found], phase: str, worker: str) -> dict[tuple[int, int], float]:
    """Runs per second by batch and steps."""
    listed = found.get(phase, {}).get(worker, [])
    return {(row["batch"], row["steps"]): 1 / statistics.median(row["seconds"]) for row in listed if "seconds" in row}

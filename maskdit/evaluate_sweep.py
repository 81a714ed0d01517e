"""`maskdit evaluate --sweep`: a generator measured over settings of its sampler, all points in a table and a plot."""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from maskdit.evals import report, sweep
from maskdit.evals.scores import HIGHER, SCORES, label
from maskdit.evals.scoring import Scoring
from maskdit.evaluate import (
    EvaluationError,
    Settings,
    check,
    generator,
    measured,
    place,
    prepare,
    provenance,
    resolved,
    settings_used,
)
from maskdit.model import load
from maskdit.references import checksum
from maskdit.training import distributed

FILE, PLOT = "sweep.json", "sweep.png"


@distributed.together()
def evaluate_sweep(
    workdir: str,
    sweeps: Sequence[str],
    metrics: Sequence[str] = ("fd", "is"),
    num: int = 256,
    seeds: Sequence[int] = (0,),
    *,
    reference: str | None = None,
    network: str | None = None,
    resize: str | None = None,
    batch: int = 64,
    out: str | None = None,
    ema: str = "default",
    step: int | str | None = None,
    trust: Iterable[str] = (),
    **sampling: Any,
) -> dict[str, Any]:
    """Measures every combination of settings; prints a table, writes `sweep.json` and the plot `sweep.png`.

    Every point is written as soon as it is measured: a sweep that was interrupted goes on with the points it lacks.

    Args:
      workdir, metrics, num, seeds, reference, network, resize, batch, out, ema, step, trust, **sampling: see
        `maskdit.evaluate.evaluate`; what is swept must not be given besides.
      sweeps: such as `guidance=1:4:0.25`, see `maskdit.evals.sweep.parse`.

    Returns:
      What was written: `points`, each with its settings and figures, `best` (of the first figure), and the rest.

    Raises:
      SweepError: for sweeps that cannot be made. What `evaluate` raises.
    """
    begin = time.monotonic()
    check(metrics, num, seeds)
    sampling = {name: value for name, value in sampling.items() if value is not None}
    points = sweep.points([sweep.parse(text) for text in sweeps])
    fixed = {**sampling, **({"step": step} if step is not None else {}), **({"ema": ema} if ema != "default" else {})}
    if twice := set(points[0]) & set(fixed):
        raise EvaluationError(f"{min(twice)} is swept and given: leave --{min(twice)} out")
    facts = {"workdir": str(workdir), "metrics": list(metrics), "num": num, "seeds": list(seeds), "batch": batch}
    facts |= {"reference": reference, "network": network, "resize": resize, "ema": ema, "step": step}
    facts |= {name: str(value) for name, value in sampling.items()}
    distributed.agree(verb="evaluate", sweeps=list(sweeps), trust=list(trust), out=out, **facts)
    folder, ready = place(workdir, out), None
    loaded: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for point in points:
        which = {"ema": point.get("ema", ema), "step": point.get("step", step)}
        if loaded.get("which") != which:
            model = generator(load(workdir, trust=trust, **which), workdir)
            loaded = {"which": which, "model": model, "weights": checksum(model.variables)}
        model = loaded["model"]
        if ready is None:
            ready = prepare(model, metrics, folder, reference, network, resize, batch, trust)
        own = {name: value for name, value in point.items() if name not in which}
        settings = Settings(num, tuple(int(seed) for seed in seeds), {**resolved(model, sampling), **own}, tuple(trust))
        key = {**facts, "point": point, "weights": loaded["weights"], "used": settings_used(model, settings)}
        key |= provenance(ready)
        key["versions"] = distributed.versions()
        record = _point(folder, key, lambda: _measure(model, metrics, settings, ready))  # noqa: B023
        records.append({**point, **record})
        rows.append({**point, **{name: value["mean"] for name, value in record["metrics"].items()}})
        if distributed.is_first():
            print(
                ", ".join(
                    f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in rows[-1].items()
                ),
                flush=True,
            )
    return _finish(
        folder,
        rows,
        records,
        ready,
        {"of": str(workdir), "num": num, "seeds": list(seeds), "asked": facts},
        time.monotonic() - begin,
    )


def _measure(model: Any, metrics: Sequence[str], settings: Settings, ready: Scoring | None) -> dict[str, Any]:
    begin = time.monotonic()
    figures = measured(model, metrics, settings, ready, floor=False)
    return report.record(figures, settings_used(model, settings), time.monotonic() - begin)


def _point(folder: epath.Path, key: Any, make: Any) -> dict[str, Any]:
    """A point's record: one that is there already, or a new one, written."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = folder / "progress" / f"point-{name}.json"
    before = distributed.first(lambda: json.loads(path.read_text()) if path.exists() else None)
    if before is not None:
        return before
    made = make()
    report.write(path.parent, made, path.name)
    return made


def _finish(
    folder: epath.Path,
    rows: list[dict[str, Any]],
    records: list[dict[str, Any]],
    ready: Scoring | None,
    about: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    higher = {*HIGHER, *(name for row in rows for name in row if name.startswith("labels/"))}
    figures = list(records[0]["metrics"])
    winner = sweep.best(rows, figures[0], higher)
    found = report.record([], {**about, **provenance(ready)}, seconds) | {
        "points": records,
        "best": None if winner is None else {**rows[winner], "of": figures[0]},
    }
    del found["metrics"]
    if distributed.is_first():
        print(sweep.table(rows, higher))
        if ready is not None:
            print("\n".join(ready.notes(about["num"], bias=False)))
        titles = (
            {}
            if ready is None
            else {name: label(name, ready.network) for name in figures if name.partition("/")[0] in SCORES}
        )
        folder.mkdir(parents=True, exist_ok=True)
        if len(rows) > 1:
            sweep.plot(str(folder / PLOT), rows, higher, titles)
            print(f"wrote {folder / PLOT}")
    report.keep(folder, found, FILE)
    return found

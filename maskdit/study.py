"""`maskdit study`: trains the runs of a study, measures them, and prints one table.

Each run is an ordinary work directory of the training loop; a study that was stopped goes on where it was. A run may
start from the weights of another one, such as a generator from those of its tokenizer; it is refused where those have
changed since.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit import references
from maskdit.model import load
from maskdit.performance import report
from maskdit.studies import crt, fvq, robusttok, tokenizers
from maskdit.studies.description import Column, Study, Trial
from maskdit.train import train
from maskdit.training import distributed

KIND = "maskdit study 1"
RESULT = "result.json"
"""What a finished run of a study leaves in its work directory."""
STUDIES: dict[str, Study] = {study.name: study for study in (tokenizers.STUDY, fvq.STUDY, robusttok.STUDY, crt.STUDY)}
_LOG = logging.getLogger(__name__)


class StudyError(ValueError):
    """A study that cannot be made; the message says what to do."""


@distributed.together()
def study(
    plan: str | Study, workdir: str | None = None, *, json_file: str | None = None, only: str | None = None
) -> dict[str, Any]:
    """Trains and measures what is not done yet, prints the table, and writes the results as JSON.

    Args:
      plan: name of a study, or a study.
      workdir: where the runs live, each in `RUN-seedN`; `runs/study-NAME` by default.
      json_file: of the results; `docs/studies/NAME.json` by default.
      only: the run to train; results of the others are kept as far as they are there.

    Returns:
      What was written: `kind`, `study`, `about`, and `runs`, those that are finished, each with `run`, `seed`,
      `config`, `overrides`, `after`, `steps`, `batch`, `metrics`, `missing`, `seconds`, `date`, `machine`, `versions`.

    Raises:
      StudyError: for an unknown study or run, a work directory with results of other settings, a run alone that comes
        after one that is not finished, and one that was trained on other weights than that one has.
    """
    plan = find(plan) if isinstance(plan, str) else plan
    names = [trial.name for trial in plan.trials]
    if only is not None and only not in names:
        raise StudyError(f"the study {plan.name} has no run '{only}'; {configs.nearest(only, names)}")
    root = epath.Path(workdir or f"runs/study-{plan.name}")
    out = epath.Path(json_file or _default(plan.name))
    done: list[dict[str, Any]] = []
    stopped = False
    for trial in plan.trials:
        for seed in plan.seeds:
            folder = _folder(root, trial.name, seed)
            config = configuration(plan, trial, seed)
            checksum = _checksum(config)  # of settings alone: work directories may move
            found = _finished(folder, checksum)
            wanted = only in (None, trial.name) and not stopped and (found is None or bool(found["missing"]))
            _link(config, trial, seed, root, needed=wanted)
            if wanted:
                _LOG.info("study %s: %s, seed %d", plan.name, trial.name, seed)
                found = _trained(plan, trial, seed, config, folder, checksum)
                stopped = found is None
            done += [found] if found is not None else []
    record = {"kind": KIND, "study": plan.name, "about": plan.about, "runs": done}
    if distributed.is_first() and done:
        _write(out, record)
        print(table(plan, record))
        print(f"stopped: the same command goes on from {root}" if stopped else f"wrote {out}")
    return record


def find(name: str) -> Study:
    """The study of a name.

    Raises:
      StudyError: naming the nearest.
    """
    if name not in STUDIES:
        raise StudyError(f"there is no study '{name}'; {configs.nearest(name, list(STUDIES))}")
    return STUDIES[name]


def configuration(plan: Study, trial: Trial, seed: int) -> ConfigDict:
    """The config of a run, before weights that it refers to are looked up.

    Raises:
      ConfigError: for overrides that do not fit.
    """
    config = configs.load(trial.config)
    for path, value in {**plan.shared, **trial.overrides, "seed": seed}.items():
        configs.override(config, path, value)
    return config


def read(name: str, json_file: str | None = None) -> dict[str, Any]:
    """The results of a study as they were written.

    Raises:
      StudyError: for a file that is missing, or of another study.
    """
    path = epath.Path(json_file or _default(name))
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise StudyError(
            f"there are no results at {path}: run `maskdit study {name}` first, or name a --json file"
        ) from error
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("kind") != KIND or record.get("study") != name:
        raise StudyError(f"{path} does not hold results of the study {name}: name the --json file that it wrote")
    return record


def table(plan: Study, record: Mapping[str, Any], markdown: bool = False) -> str:
    """The results as text, or in Markdown: rows of runs (`Trial.row`), mean and sample standard deviation over seeds.

    Args:
      plan: the study.
      record: what `study` gives.
      markdown: whether the table is for a README.
    """
    by_row: dict[str, list[dict[str, Any]]] = {}
    titles = {trial.name: trial.row or trial.name for trial in plan.trials}
    for result in record["runs"]:
        by_row.setdefault(titles.get(result["run"], result["run"]), []).append(result)
    columns = [c for c in plan.columns if any(_has(result, c) for result in record["runs"])]
    head = ["", *(column.title for column in columns)]
    rows = [[name, *(_cell(results, column) for column in columns)] for name, results in by_row.items()]
    notes = _notes(plan, record)
    if markdown:
        lines = [head, ["---", *("---:" for _ in columns)], *rows]
        return "\n".join([plan.about, "", *(f"| {' | '.join(line)} |" for line in lines), "", *notes])
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in (head, *rows)]
    return "\n".join([plan.about, *("  ".join(line) for line in lines), *notes])


def _default(name: str) -> str:
    return f"docs/studies/{name}.json"


def _slug(name: str) -> str:
    return name.replace(" ", "_")


def _folder(root: epath.Path, name: str, seed: int) -> epath.Path:
    return root / f"{_slug(name)}-seed{seed}"


def _link(config: ConfigDict, trial: Trial, seed: int, root: epath.Path, *, needed: bool) -> None:
    """Puts references to the runs that a run comes after into its config, with their specs and checksums.

    Raises:
      StudyError: where the run was begun with other weights than those runs have now, and where one of them that is
        needed is not finished.
    """
    folder = _folder(root, trial.name, seed)
    for path, name in trial.after.items():
        source = _folder(root, name, seed)
        if not distributed.first((source / RESULT).exists):
            if needed:
                raise StudyError(f"'{trial.name}' comes after '{name}', and {source} is not finished: run that first")
            continue
        configs.override(config, path, configs.pretrained(str(source)))
        references.weights_of(config, path)
        now, before = _entry(config, path)["checksum"], _checksum_before(folder, path)
        if before not in (None, now):
            raise StudyError(
                f"{folder} was trained on other weights than {source} has now: remove it, or choose another --workdir"
            )


def _checksum_before(folder: epath.Path, path: str) -> str | None:
    """The checksum of the weights that a run was begun with, if it was."""
    stored = folder / "config.json"
    text = distributed.first(lambda: stored.read_text() if stored.exists() else None)
    return None if text is None else _entry(configs.from_json(text), path)["checksum"]


def _entry(config: ConfigDict, path: str) -> Any:
    return functools.reduce(lambda node, key: node[key], path.split("."), config)


def _finished(folder: epath.Path, checksum: str) -> dict[str, Any] | None:
    """The result that a run has left, if any.

    Raises:
      StudyError: for one of other settings.
    """
    path = folder / RESULT
    text = distributed.first(lambda: path.read_text() if path.exists() else None)
    if text is None:
        return None
    result = json.loads(text)
    if result.pop("checksum") != checksum:
        raise StudyError(f"{path} belongs to other settings of this run: choose another --workdir, or remove {folder}")
    return result


def _trained(
    plan: Study, trial: Trial, seed: int, config: ConfigDict, folder: epath.Path, checksum: str
) -> dict[str, Any] | None:
    """Trains a run to its end and measures it; None where it was stopped before."""
    state = train(config, str(folder))
    if int(state.step) < config.steps:
        return None
    measured = (trial.measure or plan.measure)(load(str(folder)), configs.build(config))
    overrides = {**plan.shared, **trial.overrides}
    result = {
        "run": trial.name,
        "seed": seed,
        "config": trial.config,
        "overrides": {path: _plain(value) for path, value in overrides.items()},
        "after": dict(trial.after),
        "steps": config.steps,
        "batch": config.batch,
        "metrics": dict(measured.metrics),
        "missing": dict(measured.missing),
        "seconds": distributed.first(lambda: _seconds(folder, config.batch)),
        "date": report.now(),
        "machine": _machine(),
        "versions": report.versions(),
    }
    if distributed.is_first():
        _write(folder / RESULT, {**result, "checksum": checksum})
    return result


def _seconds(folder: epath.Path, batch: int) -> float | None:
    """Seconds of a run's steps, by the rates in its log: interruptions and compilation do not count."""
    before, spent, covered = 0, 0.0, 0
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        steps, before = entry["step"] - before, entry["step"]
        if rate := entry.get("images_per_second"):
            spent, covered = spent + steps * batch / rate, covered + steps
    return spent * before / covered if covered else None


def _machine() -> str:
    found = report.hardware()
    return f"{found['cores']} cores of {found['host']}, {found['devices']} {found['device']} device(s)"


def _checksum(config: ConfigDict) -> str:
    return hashlib.sha256(configs.to_json(config).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A value of a config as JSON has it."""
    return json.loads(configs.to_json(ConfigDict({"value": value})))["value"]


def _write(path: epath.Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{path.name}.tmp"
    unfinished.write_text(json.dumps(record, indent=2) + "\n")
    unfinished.replace(path)


def _value(result: Mapping[str, Any], column: Column) -> float | None:
    return result["seconds"] if column.metric == "seconds" else result["metrics"].get(column.metric)


def _has(result: Mapping[str, Any], column: Column) -> bool:
    return _value(result, column) is not None or column.metric in result["missing"]


def _cell(results: list[dict[str, Any]], column: Column) -> str:
    if any(column.metric in result["missing"] for result in results):
        return "not measured"
    by_seed: dict[int, float] = {}
    for result in results:
        if (value := _value(result, column)) is not None:
            by_seed[result["seed"]] = by_seed.get(result["seed"], 0.0) + value * column.factor
    values = list(by_seed.values())
    if not values:
        return "–"
    mean, digits = f"{np.mean(values):,.{column.digits}f}", column.digits
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):,.{digits}f}"


def _notes(plan: Study, record: Mapping[str, Any]) -> list[str]:
    """Lines below a table."""
    results = record["runs"]
    missing = {name: how for result in results for name, how in result["missing"].items()}
    seeds = sorted({result["seed"] for result in results})
    spread = f"Mean ± standard deviation over {len(seeds)} seeds. " if len(seeds) > 1 else ""
    machines = " and ".join(sorted({f"{result['machine']}, {result['date'].partition(' ')[0]}" for result in results}))
    return [*plan.notes, *(f"{name}: not measured: {how}" for name, how in missing.items()), f"{spread}On {machines}."]

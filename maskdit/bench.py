"""`maskdit bench`: how fast a config runs here, with the programs that train and sample."""

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.performance import encoding, importing, measure, report
from maskdit.performance import gates as gated
from maskdit.performance import scores as score_costs
from maskdit.performance import tokens as token_costs
from maskdit.performance.report import Report
from maskdit.performance.subject import BenchError, Subject
from maskdit.training import distributed

PARTS = ("loader", "step", "both", "sampler", "checkpoint")


@distributed.together()
def bench(
    config: ConfigDict,
    name: str,
    *,
    parts: Sequence[str] = PARTS,
    rounds: int = 3,
    at: int = 0,
    synthetic: bool = False,
    scratch: str | None = None,
    json_file: str | None = None,
    against: str | None = None,
    trust: Iterable[str] = (),
) -> Report:
    """Measures a config and prints a table.

    Args:
      config: a config whose top level is a `maskdit.training.run.Run`.
      name: the config as it was asked for; the report says what differs from the config of that name.
      parts: of `PARTS`: the loader alone, the step on a resident batch, both as in training (which measures the step
        too), the sampler, saving and restoring a checkpoint.
      rounds: blocks of each measurement; medians count.
      at: the step of the run whose plan (tokens kept) is measured.
      synthetic: whether random images take the place of the config's.
      scratch: folder or bucket for the checkpoints; the system's temporary folder by default.
      json_file: where to write the report.
      against: a file written earlier, to compare with.
      trust: packages besides `maskdit` whose classes the config may name.

    Raises:
      BenchError: for unknown parts, an unreadable data source, and a file to compare with that is of another config.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise BenchError(f"there is no part '{unknown[0]}': use some of {', '.join(PARTS)}")
    if rounds < 1:
        raise BenchError(f"rounds must be 1 or more, got {rounds}")
    if "checkpoint" in parts and not scratch and distributed.peers() is not None:
        raise BenchError("several processes write one checkpoint: name a --scratch folder that all see")
    _check_writable(json_file)
    setting = {"synthetic": synthetic, "at": at}
    plain = json.loads(configs.to_json(config))
    distributed.agree(verb="bench", config=plain, setting=setting, parts=list(parts), rounds=rounds)
    earlier = report.read(against) if against else None
    if earlier is not None and against is not None:
        report.check_same(config, setting, earlier, against)
    date, load = report.now(), report.load_average()
    subject = Subject(config, synthetic, at, trust)
    figures, notes = _measured(subject, set(parts), rounds, scratch)
    found = Report(
        name=name,
        config=plain,
        changed=configs.differences(config, configs.load(name)),
        setting=setting,
        hardware=report.hardware(),
        mesh=dict(subject.devices.shape),
        versions=report.versions(),
        date=date,
        load=load,
        notes=[_what(subject, synthetic), *notes],
        figures=report.named(figures),
    )
    if distributed.is_first():
        print(found.table(earlier))
        if json_file:
            found.write(json_file)
    return found


def gates(rounds: int = 3, json_file: str | None = None) -> list[gated.Gate]:
    """Measures the gates of a CPU and prints the table; takes minutes.

    Args:
      rounds: turns of each program.
      json_file: where to write the rows.

    Raises:
      BenchError: where the backend is no CPU.
    """
    if jax.default_backend() != "cpu":
        raise BenchError(f"the gates are those of a CPU, this is a {jax.default_backend()}: set JAX_PLATFORMS=cpu")
    head = _head()
    rows = gated.measure(rounds)
    _tell(head, gated.table(rows), {"gates": [dataclasses.asdict(row) for row in rows]}, json_file)
    return rows


def imports(
    rounds: int = 3, scratch: str | None = None, json_file: str | None = None, case: importing.Case | None = None
) -> list[importing.Row]:
    """Measures bringing in a published file of full size, of each kind, and prints the table; takes a minute a round.

    Args:
      rounds: imports of each kind of file.
      scratch: folder for the files, 6.3 GB; the system's temporary folder by default.
      json_file: where to write the rows.
      case: what is brought in; DiT-XL/2 with its VAE by default.

    Raises:
      BenchError: for rounds below 1, a folder that is missing or too full, and an import that fails.
    """
    if rounds < 1:
        raise BenchError(f"rounds must be 1 or more, got {rounds}")
    _check_writable(json_file)
    head = _head()
    rows = importing.measure(rounds, scratch, case)
    _tell(head, importing.table(rows), {"import": [dataclasses.asdict(row) for row in rows]}, json_file)
    return rows


def encodes(
    rounds: int = 3, scratch: str | None = None, json_file: str | None = None, case: encoding.Case | None = None
) -> encoding.Row:
    """Measures encoding a data set beside the tokenizer's bare forward pass, and prints both rates.

    Args:
      rounds: turns of each.
      scratch: folder for the shards; the system's temporary folder by default.
      json_file: where to write the row.
      case: what is encoded; a VAE at 64 pixels by default.

    Raises:
      BenchError: for rounds below 1.
    """
    if rounds < 1:
        raise BenchError(f"rounds must be 1 or more, got {rounds}")
    _check_writable(json_file)
    head = _head()
    row = encoding.measure(rounds, scratch, case)
    _tell(head, encoding.table(row), {encoding.NAME: dataclasses.asdict(row)}, json_file)
    return row


def tokens(
    rounds: int = 3, json_file: str | None = None, case: token_costs.Case | None = None
) -> tuple[token_costs.Row, ...]:
    """Measures a masked generator of a few tokens beside a diffusion model, counts others, and prints one table.

    Args:
      rounds: turns of each program, minutes each.
      json_file: where to write the rows.
      case: what is measured; a pair of DiT-S's size by default.

    Raises:
      BenchError: for rounds below 1.
    """
    if rounds < 1:
        raise BenchError(f"rounds must be 1 or more, got {rounds}")
    _check_writable(json_file)
    head = _head()
    found = token_costs.measure(rounds, case)
    rows = (*found.rows, *token_costs.counted())
    written = {token_costs.NAME: [dataclasses.asdict(row) for row in rows], "share": found.share}
    _tell(head, token_costs.table(rows, found), written, json_file)
    return rows


def scores(
    rounds: int = 3,
    json_file: str | None = None,
    *,
    parts: Sequence[str] = score_costs.PARTS,
    case: score_costs.Case | None = None,
) -> score_costs.Found:
    """Measures what scores of images cost, and whether a distance orders images rightly, and prints the figures.

    Args:
      rounds: turns of each program, minutes each.
      json_file: where to write the figures.
      parts: of `maskdit.performance.scores.PARTS`.
      case: what is measured; 50,000 x 2048 features, the network that ships and Inception by default.

    Raises:
      BenchError: for rounds below 1, and unknown parts.
    """
    if rounds < 1:
        raise BenchError(f"rounds must be 1 or more, got {rounds}")
    _check_writable(json_file)
    head = _head()
    found = score_costs.measure(rounds, parts, case)
    _tell(head, score_costs.table(found), {score_costs.NAME: dataclasses.asdict(found)}, json_file)
    return found


def _head() -> dict[str, Any]:
    """What the rows of a table belong to, at the start."""
    return {"date": report.now(), "load": report.load_average(), **report.hardware(), **report.versions()}


def _tell(head: dict[str, Any], table: str, rows: dict[str, Any], json_file: str | None) -> None:
    """Prints a table below its head, and writes its rows."""
    load = f"load average {head['load'] or 0:.1f}"
    print(f"{head['date']}: {head['cores']} cores of {head['host']}, {load} at the start, jax {head['jax']}")
    print(table)
    if json_file:
        epath.Path(json_file).write_text(json.dumps({**head, **rows}, indent=2) + "\n")


def _check_writable(json_file: str | None) -> None:
    if json_file and "://" not in json_file and not epath.Path(json_file).absolute().parent.is_dir():
        raise BenchError(f"cannot write {json_file}: its folder does not exist")


def _measured(
    subject: Subject, parts: set[str], rounds: int, scratch: str | None
) -> tuple[list[report.Figure], list[str]]:
    """Figures of the parts asked for. The step comes first: its peak of memory and its start are then its own."""
    figures: list[report.Figure] = []
    notes: list[str] = []
    if parts & {"step", "both"}:
        figures, notes = measure.stepping(subject, rounds, loaded="both" in parts)
    if "loader" in parts:
        figures = measure.loading(subject, rounds) + figures
    if "checkpoint" in parts:
        with tempfile.TemporaryDirectory() as temporary:
            figures += measure.saving(subject, rounds, scratch or temporary)
    sampler = measure.sampling(subject, rounds) if "sampler" in parts else []
    if "sampler" in parts and not sampler:
        notes.append("no sampler: the config has none")
    return figures + sampler, notes


def _what(subject: Subject, synthetic: bool) -> str:
    run = subject.run
    data = "random images in memory" if synthetic else type(run.data.source).__name__
    rows = f"batch {run.batch} in {run.microbatches} part(s)"
    return f"{subject.parameters:,} parameters; {rows}, {run.data.size} pixels, {data}"

"""`maskdit evaluate`: measures a trained model, prints a table and keeps the figures beside the model."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from maskdit.evals import labels, likelihood
from maskdit.model import load
from maskdit.samplers.temperature import started
from maskdit.training import distributed


class EvaluationError(ValueError):
    """An evaluation that cannot be made; the message says what can."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
      name: such as `labels/style`.
      values: one for each seed.
      beside: figures to read it against, by name, such as `chance`.
      unit: `%` for shares, which the table shows in percent; else what follows the number.
      note: a line for the end of the table.
    """

    name: str
    values: tuple[float, ...]
    beside: dict[str, float]
    unit: str = "%"
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all metrics share.

    Attributes:
      num: images for each seed.
      seeds: of sampling.
      steps, guidance, temperature: of the sampler; None for the model's own.
      trust: packages besides `maskdit` whose classes the config may name.
    """

    num: int
    seeds: tuple[int, ...]
    steps: int | None
    guidance: float | None
    temperature: float | None = None
    trust: tuple[str, ...] = ()


def label_obedience(model: Any, settings: Settings) -> list[Figure]:
    """The share of samples that show the label asked for, for each label; see `maskdit.evals.labels`."""
    classifier = labels.shipped_classifier()
    names = labels.judged(model, classifier)
    sampling = {name: getattr(settings, name) for name in ("steps", "guidance", "temperature")}
    made = [labels.obeyed(model, classifier, settings.num, seed, **sampling) for seed in settings.seeds]
    accuracy = labels.held_out_accuracy(classifier)
    return [
        Figure(
            name=f"labels/{name}",
            values=tuple(shares[name] for shares in made),
            beside={"chance": 1 / len(model.vocabulary[name]), "classifier": accuracy[name]},
            note="classifier: its own accuracy on emoji that it was not trained on",
        )
        for name in names
    ]


def bits_per_token(model: Any, settings: Settings) -> list[Figure]:
    """Bits per token of held-out images; see `maskdit.evals.likelihood`."""
    found = likelihood.bits_per_token(model, settings.num, settings.seeds, trust=settings.trust)
    return [
        Figure(
            name="bits",
            values=found.means,
            beside={"standard error": found.error, "uniform": found.uniform},
            unit="bits",
            note=f"bits: per token, of {found.images} held-out images, {found.kind}; uniform: all codes alike",
        )
    ]


METRICS: dict[str, Callable[[Any, Settings], list[Figure]]] = {"labels": label_obedience, "bits": bits_per_token}
"""What `--metrics` may name."""


@distributed.together()
def evaluate(
    workdir: str,
    metrics: Sequence[str] = ("labels",),
    num: int = 256,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    ema: str = "default",
    step: int | None = None,
    trust: Iterable[str] = (),
) -> dict[str, Any]:
    """Measures a trained model, prints a table, and writes the figures to `evaluation.json` in its work directory.

    Several processes measure together; the first one prints and writes.

    Args:
      workdir: the model's work directory, or a file written by `maskdit.save`, beside which the figures then go.
      metrics: names out of `METRICS`.
      num: images for each seed; of held-out ones at most as many as there are.
      seeds: each gives a figure.
      steps, guidance, temperature: of the sampler; the model's own by default.
      ema, step, trust: see `maskdit.load`.

    Returns:
      What was written: `metrics` (for each figure `values` by seed, their `mean`, and what to read it against), and
      under which settings.

    Raises:
      EvaluationError: for an unknown metric, no seeds or no images.
      LabelsError, LikelihoodError, ModelError, CheckpointError: for a model that cannot be measured so.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise EvaluationError(f"metrics are {', '.join(METRICS)}; got {', '.join(unknown) or 'none'}")
    if num < 1 or not seeds:
        raise EvaluationError(f"an evaluation takes 1 or more images and seeds, got num={num} and {len(seeds)} seeds")
    root, is_file = epath.Path(workdir), str(workdir).endswith(".npz")
    distributed.agree(verb="evaluate", workdir=str(workdir), metrics=list(metrics), num=num, seeds=list(seeds))
    distributed.agree(steps=steps, guidance=guidance, temperature=temperature, ema=ema, step=step, trust=list(trust))
    model = load(workdir, ema=ema, step=step, trust=trust)
    settings = Settings(num, tuple(int(seed) for seed in seeds), steps, guidance, temperature, tuple(trust))
    figures = [figure for name in metrics for figure in METRICS[name](model, settings)]
    if distributed.is_first():
        print(table(figures, settings))
    record = {
        "metrics": {f.name: {"values": f.values, "mean": float(np.mean(f.values)), **f.beside} for f in figures},
        **_settings(model, settings),
        "ema": model.ema,
        "step": model.step,
        "versions": {name: importlib.metadata.version(name) for name in ("maskdit", "jax", "flax")},
    }
    out = root.with_suffix(".evaluation.json") if is_file else root / "evaluation.json"
    if distributed.is_first():
        out.write_text(json.dumps(record, indent=2) + "\n")
    return record


def table(figures: Sequence[Figure], settings: Settings) -> str:
    """The figures as text: a row for each, a column for each seed, the mean, and what to read it against.

    Args:
      figures: what was measured.
      settings: under which they were measured.
    """
    beside = list(dict.fromkeys(name for figure in figures for name in figure.beside))
    titles = [f"{settings.num} images", *(f"seed {seed}" for seed in settings.seeds), "mean", *beside]
    rows = [
        [
            f.name,
            *(_shown(value, f.unit) for value in (*f.values, float(np.mean(f.values)), *map(f.beside.get, beside))),
        ]
        for f in figures
    ]
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (titles, *rows)
    ]
    return "\n".join([*lines, *dict.fromkeys(figure.note for figure in figures if figure.note)])


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.3f} {unit}"


def _temperature(sampler: Any, settings: Settings) -> Any:
    """The temperature of a run, or its course in words."""
    own, asked = sampler.temperature, settings.temperature
    course = own if asked is None else started(own, asked)
    return course if isinstance(course, int | float) else str(course)


def _settings(model: Any, settings: Settings) -> dict[str, Any]:
    """The settings as they were used, the model's own included."""
    sampler, guidance = getattr(model, "sampler", None), getattr(model, "guidance", None)
    return {
        "num": settings.num,
        "seeds": settings.seeds,
        "sampler": type(sampler).__name__ if sampler is not None else None,
        "steps": getattr(sampler, "steps", None) if settings.steps is None else settings.steps,
        "guidance": getattr(guidance, "weight", None) if settings.guidance is None else settings.guidance,
        **({"temperature": _temperature(sampler, settings)} if hasattr(sampler, "temperature") else {}),
    }

"""`maskdit evaluate`: measures a trained generator, prints a table and keeps the figures.

Images of whatever made them, and tokenizers, are measured by `maskdit.evaluate_images`.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from maskdit.evals import labels, likelihood, report, scoring
from maskdit.evals import network as networks
from maskdit.evals.memorisation import NEAREST, check_memorisation
from maskdit.evals.neighbours import Memorisation
from maskdit.evals.reference import sha256
from maskdit.evals.report import Figure
from maskdit.evals.samples import drawn
from maskdit.evals.scores import SCORES, label, wanted
from maskdit.evals.scoring import Scoring
from maskdit.model import load
from maskdit.sample import sampler_named
from maskdit.samplers.temperature import started
from maskdit.tokenizers.model import TokenizerModel
from maskdit.training import distributed
from maskdit.training.evaluation import fixed_labels


class EvaluationError(ValueError):
    """An evaluation that cannot be made; the message says what can."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all metrics of a generator share.

    Attributes:
      num: images for each seed.
      seeds: of sampling.
      sampling: settings of `GeneratorModel.sample`, such as `steps` and `guidance`; None for the model's own.
      trust: packages besides `maskdit` whose classes the config may name.
    """

    num: int
    seeds: tuple[int, ...]
    sampling: dict[str, Any]
    trust: tuple[str, ...] = ()


def label_obedience(model: Any, settings: Settings) -> list[Figure]:
    """The share of samples that show the label asked for, for each label; see `maskdit.evals.labels`."""
    classifier = labels.shipped_classifier()
    names = labels.judged(model, classifier)
    sampling = {name: value for name, value in settings.sampling.items() if name != "labels"}  # it asks in turn itself
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
"""What `--metrics` may name besides the scores of `maskdit.evals.scores.SCORES`."""


@distributed.together()
def evaluate(
    workdir: str,
    metrics: Sequence[str] = ("fd",),
    num: int = 256,
    seeds: Sequence[int] = (0,),
    *,
    reference: str | None = None,
    network: str | None = None,
    resize: str | None = None,
    batch: int = 64,
    out: str | None = None,
    neighbours: str | None = None,
    ema: str = "default",
    step: int | str | None = None,
    trust: Iterable[str] = (),
    **sampling: Any,
) -> dict[str, Any]:
    """Measures samples of a trained generator, prints a table, and writes the figures to `metrics.json`.

    Several processes measure together; the first one prints and writes. What was interrupted goes on.

    Args:
      workdir: the model's work directory, a file written by `maskdit.save`, or the name of published weights.
      metrics: names out of `METRICS` and `SCORES`.
      num: images for each seed; of held-out ones at most as many as there are.
      seeds: each gives a figure.
      reference: what scores compare with: a file of statistics or images (`.npz`), a folder of images, or a config
        whose training images count; by default those that the model was trained on.
      network: of scores' features, see `maskdit.evals.network.find`.
      resize: the rule by which images become the network's; its first by default.
      batch: images at once.
      out: the folder to write to; by default `evaluation` in the work directory, `NAME.evaluation` beside a file.
      neighbours: a PNG file for samples beside the training images nearest to them, a check for memorised images.
      ema, step, trust: see `maskdit.load`.
      **sampling: `steps`, `guidance`, `temperature` and `text` of `GeneratorModel.sample`; `sampler`, a name out of
        `maskdit.sample.SAMPLERS`; `balanced`, whether classes are asked for in turn, as often each, not at random.

    Returns:
      What was written: `metrics` (for each figure `values` by seed, their `mean`, and what to read it against), and
      under which settings.

    Raises:
      EvaluationError: for an unknown metric, no seeds or no images.
      LabelsError, LikelihoodError, ScoreError, ModelError, CheckpointError: for a model that cannot be measured so.
    """
    begin = time.monotonic()
    check(metrics, num, seeds)
    facts = {"workdir": str(workdir), "metrics": list(metrics), "num": num, "seeds": list(seeds), "batch": batch}
    facts |= {"reference": reference, "network": network, "resize": resize, "out": out, "ema": ema, "step": step}
    distributed.agree(verb="evaluate", trust=list(trust), **facts, **{n: str(value) for n, value in sampling.items()})
    model = generator(load(workdir, ema=ema, step=step, trust=trust), str(workdir))
    folder = place(workdir, out)
    if neighbours is not None:
        _check_neighbours(model, neighbours, tuple(trust))
    ready = prepare(model, metrics, folder, reference, network, resize, batch, trust)
    settings = Settings(num, tuple(int(seed) for seed in seeds), resolved(model, sampling), tuple(trust))
    figures = measured(model, metrics, settings, ready)
    near = None if neighbours is None else _neighbours(model, settings, network, resize, batch, neighbours)
    if distributed.is_first():
        print(report.table(figures, num, [f"seed {seed}" for seed in seeds], ready.notes(num) if ready else ()))
        if near is not None:
            print(near)
            print(f"wrote {neighbours}: the samples nearest to training images, each beside its {NEAREST} nearest")
    about = {"of": str(workdir), **settings_used(model, settings), **provenance(ready)}
    if near is not None:
        about |= {"neighbours": dataclasses.asdict(near), "nearest of": network or networks.OFFLINE}
    found = report.record(figures, about, time.monotonic() - begin)
    report.keep(folder, found)
    return found


def generator(model: Any, workdir: str) -> Any:
    """The model that was loaded, if it draws images.

    Raises:
      EvaluationError: for one that does not.
    """
    if isinstance(model, TokenizerModel):
        raise EvaluationError(f"{workdir} is a tokenizer: maskdit evaluate --reconstruction {workdir} measures it")
    if not hasattr(model, "sample"):
        raise EvaluationError(f"{workdir} holds a {type(model).__name__}, which draws no images to measure")
    return model


def resolved(model: Any, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of sampling that are given, as `GeneratorModel.sample` takes them."""
    given = {name: value for name, value in sampling.items() if value is not None}
    if given.pop("balanced", False):
        names, vocabulary = list(model.task.network.classes), model.vocabulary
        if not names:
            raise EvaluationError("this model has no labels to be asked for in turn: leave --balanced out")
        given["labels"] = fixed_labels(vocabulary, names, math.prod(len(vocabulary[name]) for name in names))
    if "sampler" in given:
        given["sampler"] = sampler_named(given["sampler"], model.sampler)
    return given


def check(metrics: Sequence[str], num: int, seeds: Sequence[int]) -> None:
    """Refuses what no evaluation of a generator can be made of.

    Raises:
      EvaluationError: for an unknown metric, no seeds or no images, and one image where two make a score.
    """
    if isinstance(metrics, str):
        raise EvaluationError(f"metrics are a sequence of names, such as ('{metrics}',); got a string")
    unknown = [name for name in metrics if name not in METRICS and name not in SCORES]
    if unknown or not metrics:
        raise EvaluationError(f"metrics are {', '.join((*METRICS, *SCORES))}; got {', '.join(unknown) or 'none'}")
    if num < 1 or not seeds:
        raise EvaluationError(f"an evaluation takes 1 or more images and seeds, got num={num} and {len(seeds)} seeds")
    if num < 2 and (names := [name for name in metrics if name in SCORES]):
        raise EvaluationError(f"{names[0]} takes 2 images or more, got num={num}")


def place(subject: str, out: str | None) -> epath.Path:
    """The folder that an evaluation writes to: `out`; in a work directory `evaluation`, else `NAME.evaluation`."""
    if out is not None:
        return epath.Path(out)
    root = epath.Path(subject)
    inside = distributed.first(lambda: (root / "config.json").exists() or (root / "checkpoints").exists())
    return root / "evaluation" if inside else root.parent / f"{root.name.removesuffix('.npz')}.evaluation"


def prepare(
    model: Any,
    metrics: Sequence[str],
    folder: epath.Path | None,
    reference: str | None = None,
    network: str | None = None,
    resize: str | None = None,
    batch: int = 64,
    trust: Iterable[str] = (),
) -> Scoring | None:
    """What the scores among some metrics of a generator need; None where there are none. Arguments as of `evaluate`."""
    names = [name for name in metrics if name in SCORES]
    if not names:
        return None
    found = networks.find(network, resize)
    wanted(names, found)  # refused before anything is computed
    own, held_out = (
        (None, None)
        if reference is not None
        else (scoring.own_loader(model.config, part, tuple(trust)) for part in ("data", "held_out"))
    )
    size = model.config.data.size if model.config is not None and model.config.get("data") is not None else None
    how: dict[str, Any] = {
        "size": size,
        "batch": batch,
        "folder": folder and folder / "progress",
        "trust": tuple(trust),
    }
    return scoring.prepare(names, found, reference or own, held_out=held_out, **how)


def measured(
    model: Any, metrics: Sequence[str], settings: Settings, ready: Scoring | None, floor: bool = True
) -> list[Figure]:
    """The figures of a generator: those of `METRICS`, then scores; with `floor` those of held-out images beside."""
    figures = [figure for name in metrics if name in METRICS for figure in METRICS[name](model, settings)]
    if ready is None:
        return figures
    made = ready.of_seeds(model, settings.num, settings.seeds, **settings.sampling)
    beside = {name: {"bias": value} for name, value in ready.bias(settings.num).items()}
    for name, value in (ready.floor(settings.num) if floor else {}).items():
        beside.setdefault(name, {})["held-out"] = value
    return [*figures, *figures_of(ready, made, beside)]


def _check_neighbours(model: Any, path: str, trust: tuple[str, ...]) -> None:
    """Refuses, before anything is measured, neighbours that cannot be found or shown."""
    if any(scoring.own_loader(model.config, part, trust) is None for part in ("data", "held_out")):
        raise EvaluationError(
            "the nearest training images are told by the run's data and held_out: this model has none"
        )
    folder = epath.Path(path).parent
    if "://" not in path and not folder.is_dir():
        raise EvaluationError(f"--neighbours {path}: there is no folder {folder}")


def _neighbours(
    model: Any, settings: Settings, network: str | None, resize: str | None, batch: int, path: str
) -> Memorisation:
    training, held_out = (scoring.own_loader(model.config, part, settings.trust) for part in ("data", "held_out"))
    assert training is not None and held_out is not None
    parts = drawn(model, settings.num, seed=settings.seeds[0], batch=batch, **settings.sampling)
    samples = np.concatenate([images for _, images in parts])
    return check_memorisation(samples, networks.find(network, resize), training, held_out, path, batch=batch)


def figures_of(ready: Scoring, made: Sequence[dict[str, float]], beside: dict[str, dict[str, float]]) -> list[Figure]:
    """Scores as figures.

    Args:
      ready: what made them.
      made: the scores of each set of images.
      beside: what to read them against, by name.
    """
    return [
        Figure(
            name=name,
            values=tuple(values[name] for values in made),
            beside=beside.get(name, {}),
            unit="%" if name.startswith("pr") and not name.endswith("density") else "",
            label=label(name, ready.network),
        )
        for name in made[0]
    ]


def provenance(ready: Scoring | None) -> dict[str, Any]:
    """What makes scores repeatable, besides the samples: network, resize rule, rounding, reference."""
    if ready is None:
        return {}
    about = {"rounding": report.ROUNDING, "features": ready.network.described()}
    if ready.reference is None:
        return about
    rows = {} if ready.reference.rows is None else {"images compared one by one": len(ready.reference.rows)}
    return about | {"reference": {**ready.reference.about, **rows}}


def settings_used(model: Any, settings: Settings) -> dict[str, Any]:
    """The settings of sampling as they were used, the model's own included."""
    asked = settings.sampling
    sampler, guidance = asked.get("sampler") or getattr(model, "sampler", None), getattr(model, "guidance", None)
    steps = asked.get("steps", getattr(sampler, "steps", None))
    if sampler is not None and "steps" in asked and hasattr(sampler, "steps"):
        sampler = dataclasses.replace(sampler, steps=steps)
    used = {
        "num": settings.num,
        "seeds": settings.seeds,
        "labels": "in turn" if "labels" in asked else "at random",
        "sampler": type(sampler).__name__ if sampler is not None else None,
        "sampler_settings": str(sampler),
        "steps": steps,
        "guidance": asked.get("guidance", getattr(guidance, "weight", None)),
        "guidance_settings": str(guidance),
        "ema": model.ema,
        "step": model.step,
    }
    if isinstance(asked.get("text"), str):
        used["text"] = {"file": asked["text"], "sha256": sha256(asked["text"])}
    if hasattr(sampler, "temperature"):
        used["temperature"] = _temperature(sampler, asked.get("temperature"))
    return used


def _temperature(sampler: Any, asked: float | None) -> Any:
    """The temperature of a run, or its course in words."""
    course = sampler.temperature if asked is None else started(sampler.temperature, asked)
    return course if isinstance(course, int | float) else str(course)

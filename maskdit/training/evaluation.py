"""What is looked at during training, on averaged weights: the held-out loss by noise level, a grid of samples from
fixed noise and labels, and reconstructions beside their originals."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maskdit.config import nearest
from maskdit.contracts import Array, Cond, Plan, PyTree
from maskdit.data.conditions import takes_text
from maskdit.draw import Draw
from maskdit.evals import pictures
from maskdit.tasks.task import Context, Task
from maskdit.training import mesh, placement
from maskdit.training.optim import merge
from maskdit.training.step import Metrics, TrainState, loss_metrics


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When and on how much.

    Attributes:
      every: steps between two evaluations; the last step is always evaluated.
      batch: rows of a held-out batch.
      examples: held-out examples used, spread over the held-out records; None for all.
      images: samples, or pairs of an original and its reconstruction, in the grid; 0 for none.
      scores: of samples, or of a tokenizer's reconstructions: names out of `maskdit.evals.scores.SCORES`, such as
        `fd`. They are logged as `score/fd` and kept, with what they were made with, in `evaluation/loop.json`.
      scores_every: steps between two; None for `every`; the last step is always scored.
      samples: images that are scored, `batch` at once; of reconstructions at most as many as are held out.
      network, resize: of features, see `maskdit.evals.network.find`.
      reference: what scores compare with, as `maskdit evaluate --reference` takes it; None for the images that the run
        is trained on, of reconstructions for the images that were given.
      best: the figure by which the best checkpoint is kept, such as `fd` or `pr/recall`; None for that of the first
        score.
    """

    every: int = 1000
    batch: int = 64
    examples: int | None = None
    images: int = 32
    scores: tuple[str, ...] = ()
    scores_every: int | None = None
    samples: int = 256
    network: str | None = None
    resize: str | None = None
    reference: str | None = None
    best: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("batch", 1), ("images", 0), ("scores_every", 1), ("samples", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"evaluation.{name} must be {least} or more, got {value}")
        if self.scores or self.best is not None:
            _figures(self)  # refuses names that there are not

    @property
    def figure(self) -> str | None:
        """The figure by which the best checkpoint is kept; None without scores."""
        return (self.best or _figures(self)[0]) if self.scores else None

    def due(self, step: int, last: int) -> bool:
        """Whether held-out loss and pictures are made after a step of a run whose last one is known."""
        return step % self.every == 0 or step == last

    def scored(self, step: int, last: int) -> bool:
        """Whether scores are made after a step."""
        return bool(self.scores) and (step % (self.scores_every or self.every) == 0 or step == last)


def _figures(settings: Evaluation) -> list[str]:
    """The figures that the scores give, those that checkpoints can be ranked by.

    Raises:
      ValueError: for a score that there is not, and a best figure that is none of theirs.
    """
    from maskdit.evals.scores import HIGHER, SCORES  # takes the labels of pictures from this module

    for name in settings.scores:
        if name not in SCORES:
            raise ValueError(f"evaluation.scores: there is no score '{name}'; {nearest(name, list(SCORES))}")
    parts = {name: [figure for figure in HIGHER if figure.partition("/")[0] == name] for name in settings.scores}
    figures = [figure for name, several in parts.items() for figure in several or [name]]
    if settings.best is not None and settings.best not in figures:
        raise ValueError(
            f"evaluation.best: '{settings.best}' is no figure of the scores {', '.join(settings.scores) or '(none)'}; "
            f"{nearest(settings.best, figures)}"
        )
    return figures


def averaged(state: TrainState, decays: tuple[float, ...]) -> PyTree:
    """The parameters that evaluation and pictures use: the run's first average, or the raw ones where there is none."""
    return merge(state.params, state.ema[str(decays[0])]) if decays else state.params


def held_out_loss(
    task: Task, variables: PyTree, loader: Any, settings: Evaluation, seed: int, devices: Mesh
) -> dict[str, float]:
    """Means of the held-out loss and its parts, with the same draws at every call, on every process.

    Args:
      task: the task.
      variables: `params` and `frozen` by network name, and the task's `state`.
      loader: the loader of held-out records.
      settings: how many.
      seed: the run's.
      devices: the mesh; each process makes the rows of its devices, or all rows where they do not divide.
    """
    divides = settings.batch % placement.ways(devices) == 0
    where = mesh.batch_sharding(devices) if divides else mesh.replicated(devices)
    rows = mesh.local_rows(devices, settings.batch) if divides else None
    total: dict[str, np.ndarray] = {}
    with loader.ordered(settings.batch, settings.examples, rows) as batches, mesh.applied(devices):
        for index, batch in enumerate(batches):
            arrays = placement.own_rows(batch, settings.batch, where)
            key = placement.spread(np.array([seed, index], np.uint32), mesh.replicated(devices))
            for name, pair in jax.device_get(_held_out(variables, arrays, key, task=task)).items():
                total[name] = total.get(name, np.zeros(2)) + np.array(pair)
    return {name: float(value / weight) for name, (value, weight) in total.items() if weight}


def sample_grid(model: Any, count: int, seed: int, loader: Any = None) -> np.ndarray:
    """A picture of samples from fixed noise and labels, uint8 `[H, W, 3]`; the label with most classes makes columns.

    Args:
      model: a generator with its sampler; all processes call this.
      count: number of samples.
      seed: of the samples.
      loader: of held-out records, whose texts and labels a model that takes text is given; not needed by others.
    """
    if takes_text(model.task.network):
        labels, cond = prompts(model.task, loader, count)
        return pictures.grid(model.sample(labels, count=count, seed=seed, text=cond))
    names = sorted(model.task.network.classes, key=lambda name: len(model.vocabulary[name]))
    images = model.sample(fixed_labels(model.vocabulary, names, count) if names else None, count=count, seed=seed)
    columns = len(model.vocabulary[names[-1]]) if names else count
    return pictures.grid(images, columns if columns < count and columns <= 16 else None)


def prompts(task: Any, loader: Any, count: int, batch: int = 64) -> tuple[dict[str, list[int]] | None, Cond]:
    """Labels and texts of held-out records for samples of a model that takes text, on the host.

    Args:
      task: the generator's.
      loader: of held-out records.
      count: of so many records at most, spread evenly.
      batch: records read at once.
    """
    with loader.ordered(min(batch, count), count) as batches:
        conds = [jax.device_get(task.condition(one)) for one in batches]
    cond = jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *conds)
    return {name: np.asarray(ids).tolist() for name, ids in cond.labels.items()} or None, cond


def reconstruction_grid(model: Any, loader: Any, count: int) -> np.ndarray:
    """A picture of held-out images, each row above a row of their reconstructions, uint8 `[H, W, 3]`.

    Args:
      model: a `maskdit.tokenizers.model.TokenizerModel`; all processes call this.
      loader: the loader of held-out records.
      count: number of images, spread over the records.
    """
    with loader.ordered(count, count) as batches:
        batch = next(batches)
    given = batch["image"]
    return pictures.pairs(given, model.reconstruct(given, batch.get("text")), columns=min(count, 8))


def fixed_labels(vocabulary: dict[str, tuple[str, ...]], names: list[str], count: int) -> dict[str, list[str]]:
    """Labels for so many samples: all combinations in turn, or evenly spread ones where there are more."""
    combinations = list(itertools.product(*(vocabulary[name] for name in names)))
    total, step = len(combinations), 1
    if total > count:  # steps near the golden section, which never fall into the period of one label
        step = next(step for step in itertools.count(round(total * 0.618)) if math.gcd(step, total) == 1)
    chosen = [combinations[i * step % total] for i in range(count)]
    return {name: [labels[k] for labels in chosen] for k, name in enumerate(names)}


@functools.partial(jax.jit, static_argnames=("task",))
def _held_out(variables: PyTree, batch: dict[str, Array], key: Array, *, task: Task) -> Metrics:
    draw = Draw(jax.random.key(key[0])).named("held_out").at(key[1]).at(batch["row"])
    rows = {name: array for name, array in batch.items() if name != "row"}
    step = jax.numpy.zeros((), jax.numpy.int32)
    context = Context(rows, draw, step, Plan(), state=variables["state"], frozen=variables["frozen"])
    return loss_metrics(task.held_out(variables["params"], context))

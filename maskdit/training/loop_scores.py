"""Scores in the training loop: of samples, or of a tokenizer's reconstructions, on averaged weights.

Few images, always the same draws: the figures tell how a run goes, and which of its checkpoints is the best. They are
no figures to compare models by, which `maskdit evaluate` makes of many images.
"""

import dataclasses
import logging
import math
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from maskdit.contracts import NotFiniteError
from maskdit.data.conditions import takes_text
from maskdit.data.loader import Loader
from maskdit.evals import network as networks
from maskdit.evals import scores, scoring
from maskdit.evals.reference import ScoreError
from maskdit.evals.scoring import Scoring
from maskdit.training import best, distributed, evaluation
from maskdit.training.run import Run

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoopScores:
    """What a run scores in its loop.

    Attributes:
      run: the run.
      scored: the scores so far, of which the best checkpoint is kept.
      ready: network and reference; None where the run makes no scores.
      sampling: texts and labels for a generator that takes text.
    """

    run: Run
    scored: best.Scored
    ready: Scoring | None = None
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)

    def resume(self, step: int) -> None:
        """Goes on from a step: scores of later ones, left by a run that was killed, are forgotten."""
        settings, figure = self.run.evaluation, self.run.evaluation.figure
        if self.ready is None or figure is None:
            return
        about = {} if self.ready.reference is None else self.ready.reference.about
        how = {
            "samples": settings.samples,
            "seed": self.run.seed,
            "ema": _average(self.run),
            "sampler": str(self.run.sampler),
            "guidance": str(self.run.guidance),
            "features": self.ready.network.described(),
            "reference": about.get("reference"),
            "reference images": about.get("images"),
        }
        if settings.reference is not None:
            how["reference checksum"] = about.get("sha256")
        self.scored.resume(figure, figure in scores.HIGHER, how, step)

    def due(self, step: int) -> bool:
        """Whether scores are made after a step."""
        return self.ready is not None and self.run.evaluation.scored(step, self.run.steps)

    def missing(self, step: int) -> bool:
        """Whether a run that goes on from a step was cut off before that step's scores."""
        return step > 0 and self.due(step) and step not in self.scored.values

    def measure(self, step: int, model: Any) -> dict[str, float]:
        """Scores of a model after a step, `score/NAME` -> value, recorded; the same on every process.

        Args:
          step: updates done.
          model: with averaged weights, sampler and guidance, on the run's mesh; all processes call this.
        """
        try:
            found = self._of_samples(step, model) if hasattr(model, "sample") else self._of_reconstructions(model)
        except NotFiniteError as error:
            _LOG.warning("no scores of step %d: %s", step, error)
            self.scored.add(step, {str(self.run.evaluation.figure): math.nan})
            return {}
        # which checkpoint is the best must not hang on how processors of several kinds round
        values = distributed.first(lambda: {name: float(value) for name, value in found.items()})
        self.scored.add(step, values)
        return {f"score/{name}": value for name, value in values.items()}

    def _of_samples(self, step: int, model: Any) -> scores.Values:
        assert self.ready is not None
        model = dataclasses.replace(model, ema=_average(self.run), step=step)
        return self.ready.of_samples(model, self.run.evaluation.samples, self.run.seed, **self.sampling)

    def _of_reconstructions(self, model: Any) -> scores.Values:
        assert self.ready is not None
        settings = self.run.evaluation
        collector = self.ready.collector(settings.samples)
        with self.run.held_out.ordered(settings.batch, settings.samples) as batches:
            for one in batches:
                collector.add(model.reconstruct(one["image"], one.get("text"))[one["weight"] > 0])
        return self.ready.of_collected(collector.finish())


def prepare(task: Any, run: Run, config: ConfigDict, workdir: str, trust: tuple[str, ...] = ()) -> LoopScores:
    """Gets network and reference ready, before a run's first step; all processes call this.

    What was made of the reference stays in `evaluation/progress` of the work directory, for the next start.

    Args:
      task, run, config: the run.
      workdir: its directory.
      trust: packages besides `maskdit` whose classes the config may name.

    Raises:
      ScoreError, ModelError, DataError, WeightsError, OSError: for a network or reference that cannot be had, or do
        not go with the scores.
    """
    scored, settings = best.read(workdir), run.evaluation
    if not settings.scores:
        return LoopScores(run, scored)
    model = task.model({"params": {}, "frozen": {}, "state": {}}, run.data.vocabulary)
    samples = hasattr(model, "sample")
    _check(run, model)
    network = networks.find(settings.network, settings.resize)
    scores.wanted(settings.scores, network)  # refused before anything is read
    reference = settings.reference or _own(config, "data" if samples else "held_out", trust)
    ready = scoring.prepare(
        settings.scores,
        network,
        reference,
        size=run.data.size,
        batch=settings.batch,
        folder=epath.Path(workdir) / "evaluation" / "progress",
        limit=None if samples or settings.reference else settings.samples,
        trust=trust,
    )
    sampling: dict[str, Any] = {}
    if samples and takes_text(task.network):
        sampling = dict(zip(("labels", "text"), evaluation.prompts(task, run.held_out, settings.samples), strict=True))
    for line in ready.notes(settings.samples, bias=False):
        _LOG.info("scores of %d images: %s", settings.samples, line)
    return LoopScores(run, scored, ready, sampling)


def _check(run: Run, model: Any) -> None:
    """Refuses runs of which there is nothing to score."""
    drop = "or leave scores out with --config.evaluation.scores=()"
    if hasattr(model, "sample"):
        if run.sampler is None:
            raise ScoreError(f"scores are of samples, and this run names no sampler: set config.sampler, {drop}")
        dataclasses.replace(model, sampler=run.sampler, guidance=run.guidance).check()
        if run.held_out is None and takes_text(model.task.network):
            raise ScoreError(f"scores of a model that takes text need texts: set held_out, whose texts it gets, {drop}")
    elif not hasattr(model, "reconstruct"):
        raise ScoreError(
            f"scores are of samples or reconstructions, and a {type(model).__name__} makes neither: leave them out "
            "with --config.evaluation.scores=()"
        )
    elif run.held_out is None:
        raise ScoreError(f"scores of a tokenizer are of held-out images, and this run has none: set held_out, {drop}")


def _own(config: ConfigDict, part: str, trust: tuple[str, ...]) -> Loader:
    """The run's own images."""
    loader = scoring.own_loader(config, part, trust)
    if not isinstance(loader, Loader):
        raise ScoreError(
            f"the {part} of this run are no maskdit.data.loader.Loader, but a {type(loader).__name__}: name what "
            "scores compare with, --config.evaluation.reference=FILE.npz"
        )
    return loader


def _average(run: Run) -> str:
    return str(run.ema[0]) if run.ema else "none"

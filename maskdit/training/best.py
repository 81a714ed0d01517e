"""The scores of a run's steps, which of its checkpoints is the best by them, and which checkpoints are kept.

The scores lie in `evaluation/loop.json` of the work directory, with what they were made with. The best checkpoint is
the best of those that are there: scores of steps that were never saved, or not to the end, count for nothing.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from maskdit.training import distributed

_LOG = logging.getLogger(__name__)
BEST = "best"
"""What stands for the best checkpoint's step."""
FILE = "loop.json"


@dataclasses.dataclass
class Scored:
    """The scores of a run's steps.

    Attributes:
      folder: of the file, `evaluation` in the work directory.
      figure: the figure by which checkpoints are better or worse; None where there are no scores.
      higher: whether more of it is better.
      how: what the scores were made with, JSON types; scores made otherwise are not compared.
      values: step -> figure -> value.
    """

    folder: epath.Path
    figure: str | None = None
    higher: bool = False
    how: dict[str, Any] = dataclasses.field(default_factory=dict)
    values: dict[int, dict[str, float | None]] = dataclasses.field(default_factory=dict)

    def resume(self, figure: str, higher: bool, how: dict[str, Any], step: int) -> None:
        """Goes on from a step with scores of a kind: those of later steps, and of another kind, are forgotten.

        Args:
          figure, higher, how: see the attributes.
          step: the step that the run goes on from.
        """
        how = json.loads(json.dumps(how, default=str))
        if self.values and self.how != how:
            changed = sorted(name for name in {**how, **self.how} if how.get(name) != self.how.get(name))
            _LOG.warning(
                "scores are made with another %s than before: they are not compared with earlier ones, and the best "
                "checkpoint is that of the scores from here on",
                " and ".join(changed),
            )
            self.values = {}
        self.figure, self.higher, self.how = figure, higher, how
        self.values = {number: found for number, found in self.values.items() if number <= step}

    def add(self, step: int, values: dict[str, float]) -> None:
        """Records the scores of a step, and writes the file; the first process does."""
        self.values[step] = {name: value if math.isfinite(value) else None for name, value in values.items()}
        if not distributed.is_first():
            return
        best = self.best(self.values)
        found = {
            "best": {"figure": self.figure, "higher": self.higher, "step": best, "value": self._value(best)},
            "how": self.how,
            "scores": {str(number): self.values[number] for number in sorted(self.values)},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{FILE}.tmp"
        unfinished.write_text(json.dumps(found, indent=1) + "\n")
        unfinished.replace(self.folder / FILE)

    def best(self, steps: Sequence[int] | dict[int, Any]) -> int | None:
        """The step with the best score among some; the first one of equals; None where none of them has a score."""
        scored = [step for step in sorted(steps) if self._value(step) is not None]
        sign = -1 if self.higher else 1
        return min(scored, key=lambda step: sign * (self._value(step) or 0.0), default=None)

    def _value(self, step: int | None) -> float | None:
        return None if step is None or self.figure is None else self.values.get(step, {}).get(self.figure)


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Which checkpoints stay, as Orbax asks for it: the latest ones, those of certain steps, and the best one.

    Attributes:
      latest: how many of the latest.
      every: steps that are multiples of this; None for none.
      scored: the scores; what is added to them counts from then on.
    """

    latest: int
    every: int | None
    scored: Scored

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
        """For each checkpoint, in the order of their steps, whether it stays."""
        return self.kept([checkpoint.step for checkpoint in checkpoints])

    def kept(self, steps: Sequence[int]) -> list[bool]:
        """For each step, in rising order, whether its checkpoint stays."""
        wanted = {self.scored.best(steps), *steps[-self.latest :]}
        return [step in wanted or (self.every is not None and step % self.every == 0) for step in steps]


def read(workdir: str) -> Scored:
    """The scores that a run has left in its work directory; without any where there is no file.

    Raises:
      ValueError: for a file that is none of ours.
    """
    folder = epath.Path(workdir) / "evaluation"
    path = folder / FILE
    text = distributed.first(lambda: path.read_text() if path.exists() else None)
    if text is None:
        return Scored(folder)
    try:
        found = json.loads(text)
        values = {int(step): dict(scores) for step, scores in found["scores"].items()}
        return Scored(folder, found["best"]["figure"], bool(found["best"]["higher"]), found["how"], values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold the scores of a run ({error}): remove it, the best checkpoint is then that of the "
            "scores from here on"
        ) from error

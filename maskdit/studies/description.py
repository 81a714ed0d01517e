"""What a study is: runs, what is measured of each, and the table that shows it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from maskdit.training.run import Run


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of a trained run.

    Attributes:
      metrics: name -> number.
      missing: name of a metric -> what to do to have it.
    """

    metrics: Mapping[str, float]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Measure(Protocol):
    """Measures a trained model."""

    def __call__(self, model: Any, run: Run) -> Measured:
        """Figures of what `maskdit.load` gives of a run's work directory; `run` has the data."""
        ...


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run of a study; each of the study's seeds trains it once.

    Attributes:
      name: in tables, and with the seed the name of its work directory.
      config: `NAME[:variant]`, or a file.
      overrides: dotted path in the config -> plain value or spec; over those that all trials share.
      after: dotted path in the config -> an earlier trial, whose run of the same seed gives the weights there: a
        reference to its work directory takes the place of what the config has.
      measure: what is measured of it; None for what the study measures.
      row: of the table; None for one of its own name. Trials of one row are stages of one thing: each metric is
        measured in one of them, seconds are added up.
    """

    name: str
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    after: Mapping[str, str] = dataclasses.field(default_factory=dict)
    measure: Measure | None = None
    row: str | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table: mean and standard deviation over seeds.

    Attributes:
      title: its head.
      metric: of `Measured`, or `seconds` of training steps; a trial that does not have it shows a dash.
      digits: behind the point.
      factor: by which numbers are multiplied, 100 for per cent.
    """

    title: str
    metric: str
    digits: int = 2
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison of trained runs.

    Attributes:
      name: as `maskdit study` takes it.
      about: sentences on what is compared, for the head of the table.
      trials: the runs, in the table's order.
      seeds: of each run.
      shared: overrides of all trials; see `Trial.overrides`.
      measure: what is measured of each run; see `Trial.measure`.
      columns: of the table.
      notes: sentences below the table: definitions of what is measured.

    Raises:
      ValueError: for no seeds or trials, two trials of one name, and one after a trial that is not before it.
    """

    name: str
    about: str
    trials: tuple[Trial, ...]
    measure: Measure
    columns: tuple[Column, ...]
    seeds: tuple[int, ...] = (0,)
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [trial.name for trial in self.trials]
        if not names or not self.seeds or len(set(names)) < len(names):
            raise ValueError(f"a study has trials of different names and one seed or more, got {names}, {self.seeds}")
        for place, trial in enumerate(self.trials):
            if late := set(trial.after.values()) - set(names[:place]):
                raise ValueError(f"'{trial.name}' comes after '{min(late)}': name a trial that stands before it")

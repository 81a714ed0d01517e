"""What the loop knows of a task."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from flax import struct

from maskdit.contracts import Array, Draw, Loss, Plan, PyTree


@struct.dataclass
class Context:
    """What a task's loss may use besides the parameters.

    Attributes:
      batch: arrays of the batch by name, rows first; images are uint8.
      draw: a draw with one row per example.
      step: the number of the training step.
      plan: the step's static choices.
      state: the task's own state, changed without being trained.
      ema: averaged parameters by name.
      frozen: variables of networks that are not trained, by name.
      outputs: predictions of the groups already updated in this step, gradient stopped.
    """

    batch: Mapping[str, Array]
    draw: Draw
    step: Array
    plan: Plan = struct.field(pytree_node=False)
    state: PyTree = struct.field(default_factory=dict)
    ema: Mapping[str, PyTree] = struct.field(default_factory=dict)
    frozen: Mapping[str, PyTree] = struct.field(default_factory=dict)
    outputs: Mapping[str, Any] = struct.field(default_factory=dict)


class Task(Protocol):
    """A frozen dataclass that says what is trained against what."""

    @property
    def groups(self) -> Mapping[str, Any]:
        """Groups of parameters by name, in order of update; see `maskdit.training.optim.Group`."""
        ...

    @property
    def horizon(self) -> int:
        """Number of steps that schedules and phases span."""
        ...

    def init(self, draw: Draw, batch: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
        """Parameters by network name, and the task's state, for batches like the given one (shapes and dtypes)."""
        ...

    def freeze(
        self, draw: Draw, images: Callable[[], Iterable[Any]], given: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, PyTree]:
        """Variables of the networks that are not trained.

        `images` gives the training images once, in batches; `given` has weights from elsewhere
        (`maskdit.references.Weights`) by the network's name.
        """
        ...

    def check(self, batch: Mapping[str, Any], vocabulary: Mapping[str, tuple[str, ...]]) -> None:
        """Refuses data that do not fit, with a sentence, before anything is made."""
        ...

    def loss(self, group: str, params: PyTree, ctx: Context) -> tuple[Loss, PyTree]:
        """The loss that a group minimises, and the task's next state."""
        ...

    def plan(self, step: int) -> Plan:
        """The static choices of a step."""
        ...

    def held_out(self, params: PyTree, ctx: Context) -> Loss:
        """The loss of held-out examples, as it is compared between runs."""
        ...

    def model(self, variables: PyTree, vocabulary: Mapping[str, tuple[str, ...]]) -> Any:
        """The trained thing, with the verbs that its parts allow."""
        ...


def plans(task: Task, steps: int) -> dict[tuple[Plan, tuple[str, ...]], int]:
    """The distinct (plan, groups updated) of a run and the step in which each first occurs.

    Plans are looked at in about a thousand steps and, where two looks differ, followed from change to change; one that
    comes and goes between two looks is missed here, and compiled when it comes.

    Raises:
      ValueError: where there are more than 32: each is a program to be compiled.
    """
    looks = sorted({*range(min(steps, 64)), *range(0, steps, max(steps // 1000, 1)), steps - 1})
    changes = [0]
    for before, after in itertools.pairwise(looks):
        while task.plan(before) != task.plan(after):
            low, high = before, after  # the last step known to have the plan of `before`, and one that has not
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if task.plan(middle) == task.plan(before) else (low, middle)
            changes.append(high)
            before = high
    first: dict[tuple[Plan, tuple[str, ...]], int] = {}
    starts = [group.start for group in task.groups.values()]
    period = math.lcm(*(group.every for group in task.groups.values()))
    for begin, end in itertools.pairwise([*changes, steps]):
        for start in sorted({begin, *(start for start in starts if begin < start < end)}):
            for step in range(start, min(start + period, end)):
                first.setdefault((task.plan(step), active_groups(task, step)), step)
        if len(first) > 32:
            raise ValueError("this schedule needs more than 32 compiled programs: round it to fewer values")
    return first


def check_labels(classes: Mapping[str, int], vocabulary: Mapping[str, tuple[str, ...]]) -> None:
    """Holds a network's labels against the data's.

    Raises:
      ValueError: where a label is missing or has another number of classes.
    """
    for name, count in classes.items():
        if name not in vocabulary:
            raise ValueError(
                f"the network has the label '{name}', but the data have {sorted(vocabulary) or 'none'}: change "
                "task.network.classes or the data's labels"
            )
        if count != len(vocabulary[name]):
            raise ValueError(
                f"label '{name}' has {len(vocabulary[name])} classes in the data and {count} in the network: "
                f"set task.network.classes.{name}={len(vocabulary[name])}"
            )


def active_groups(task: Task, step: int) -> tuple[str, ...]:
    """Names of the groups that are updated in a step."""
    return tuple(name for name, group in task.groups.items() if group.active(step))

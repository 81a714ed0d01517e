"""What the loop knows of a task."""

import itertools
from collections.abc import Callable, Iterable, Mapping
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

    def freeze(self, draw: Draw, images: Callable[[], Iterable[Any]]) -> dict[str, PyTree]:
        """Variables of the networks that are not trained; `images` gives the training images once, in batches."""
        ...

    def check(self, batch: Mapping[str, Any], vocabulary: Mapping[str, tuple[str, ...]], frozen: PyTree) -> None:
        """Refuses data that do not fit, with a sentence."""
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

    Raises:
      ValueError: where there are more than 32: each is a program to be compiled.
    """

    def key(step: int) -> tuple[Plan, tuple[str, ...]]:
        return task.plan(step), active_groups(task, step)

    # plans change rarely, so steps between two looks that agree are not looked at; groups that take turns do so early
    looks = sorted({*range(min(steps, 64)), *range(0, steps, max(steps // 1000, 1)), steps - 1})
    first = {key(looks[0]): looks[0]}
    for before, after in itertools.pairwise(looks):
        low, high = before, after
        while key(after) not in first and high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if key(middle) in first else (low, middle)
        first.setdefault(key(high), high)
        if len(first) > 32:
            raise ValueError("this schedule needs more than 32 compiled programs: round it to fewer values")
    return first


def active_groups(task: Task, step: int) -> tuple[str, ...]:
    """Names of the groups that are updated in a step."""
    return tuple(name for name, group in task.groups.items() if group.active(step))

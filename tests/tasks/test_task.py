import dataclasses
from typing import Any

import pytest

from maskdit.contracts import Plan
from maskdit.tasks.task import plans
from maskdit.training.evaluation import fixed_labels
from maskdit.training.optim import Group


@dataclasses.dataclass(frozen=True)
class Scheduled:
    keeps: Any
    groups: Any = dataclasses.field(default_factory=lambda: {"one": Group()})

    def plan(self, step):
        return Plan(self.keeps(step))


@pytest.mark.parametrize("changes", [(0, 10, 20), (0, 99_998, 99_999), (0, 50_001, 50_002), (0,)])
def test_every_plan_is_found_with_its_first_step(changes):
    found = plans(Scheduled(lambda step: sum(step >= change for change in changes)), 100_000)
    assert list(found.values()) == list(changes)


def test_groups_that_take_turns_make_programs_of_their_own():
    groups = {"a": Group(), "b": Group(every=2, start=50_001)}
    found = plans(Scheduled(lambda step: None, groups), 100_000)
    assert {names: first for (_, names), first in found.items()} == {("a",): 0, ("a", "b"): 50_001}


def test_too_many_programs_are_refused():
    with pytest.raises(ValueError, match="more than 32"):
        plans(Scheduled(lambda step: step), 1000)


@pytest.mark.parametrize(("sizes", "count"), [((4, 95), 256), ((4, 8), 32), ((1000,), 256)])
def test_fixed_labels_are_even(sizes, count):
    vocabulary = {f"l{i}": tuple(map(str, range(size))) for i, size in enumerate(sizes)}
    for name, given in fixed_labels(vocabulary, list(vocabulary), count).items():
        counts = [given.count(label) for label in vocabulary[name]]
        assert max(counts) - min(counts) <= 1 + count // 100

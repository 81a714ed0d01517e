"""The top level of a training config."""

import dataclasses
from typing import Any

from maskdit.config import Pretrained
from maskdit.training.checkpoint import Checkpoints
from maskdit.training.evaluation import Evaluation
from maskdit.training.log import Log
from maskdit.training.mesh import MeshShape

MAY_CHANGE = ("steps", "log", "checkpoints", "evaluation", "held_out", "mesh", "sampler", "guidance")
"""Entries that may differ when a run is continued."""

LOADER_MAY_CHANGE = ("threads", "workers", "prefetch")
"""Fields of `data` that may differ when a run is continued: they do not change the batches."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run; the fields of a config's top level.

    Attributes:
      task: what is trained.
      data: the loader of training batches.
      steps: number of steps.
      batch: rows of the global batch.
      seed: of everything random.
      microbatches: parts in which the batch goes through the network, one after the other.
      horizon: steps that schedules and phases span; None for `steps` as they were at the first start.
      ema: decays of the averages of the weights; the first is the one that models use by default.
      held_out: the loader of held-out records; None for none.
      init_from: weights that the trained networks start from, as `maskdit.config.pretrained` names them.
      sampler, guidance: how a generator makes pictures; a model loaded from the run uses them too.
      mesh, checkpoints, log, evaluation: see their classes.
    """

    task: Any
    data: Any
    steps: int
    batch: int
    seed: int = 0
    microbatches: int = 1
    horizon: int | None = None
    ema: tuple[float, ...] = (0.9999,)
    held_out: Any = None
    init_from: Any = Pretrained()
    sampler: Any = None
    guidance: Any = None
    mesh: MeshShape = MeshShape()
    checkpoints: Checkpoints = Checkpoints()
    log: Log = Log()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "microbatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.batch % self.microbatches:
            raise ValueError(f"a batch of {self.batch} does not divide into {self.microbatches} microbatches")
        if any(not 0 <= decay < 1 for decay in self.ema):
            raise ValueError(f"decays of averages lie in [0, 1), got {self.ema}")

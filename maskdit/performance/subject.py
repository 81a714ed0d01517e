"""What `maskdit bench` measures: a config's data, state and programs, made as the training loop makes them."""

import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.contracts import PyTree
from maskdit.data.source import DataError, Record
from maskdit.draw import Draw
from maskdit.performance import programs
from maskdit.performance.costs import training_macs
from maskdit.performance.timing import Compilations, counted
from maskdit.tasks import task as tasks
from maskdit.training import mesh, placement
from maskdit.training.precision import on_this_device
from maskdit.training.run import Run
from maskdit.training.step import TrainState, abstract_state, compiled, initial_state, lower

FITTED = 512
"""Images that a tokenizer is fitted to: its values do not change how long a step takes."""


class BenchError(ValueError):
    """Something that cannot be measured as asked; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """A source of random images and labels, held in memory.

    Attributes:
      size: side of the images.
      classes: label name -> number of classes.
      count: records; they show `pictures` images in turn.
      pictures: different images.
    """

    size: int
    classes: Any
    count: int = 2**16
    pictures: int = 128

    def __len__(self) -> int:
        """Number of records."""
        return self.count

    def __getitem__(self, index: int) -> Record:
        """Record `index`."""
        labels = {name: index % classes for name, classes in self.classes.items()}
        return {"image": self._images[index % self.pictures], **labels}

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Classes named by their numbers."""
        return {name: tuple(map(str, range(count))) for name, count in self.classes.items()}

    def describe(self, index: int) -> str:
        """The record's number."""
        return f"random image {index}"

    @functools.cached_property
    def _images(self) -> np.ndarray:
        shape = (self.pictures, self.size, self.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@dataclasses.dataclass(frozen=True)
class Started:
    """How a step's program came to run.

    Attributes:
      trace, compile: seconds of tracing and lowering, and of compiling.
      first_step: seconds from the first look at the data to the end of the first step.
      programs: what was compiled until then, the step's program among them.
      step_from_cache: whether the step's program came from the persistent compilation cache.
    """

    trace: float
    compile: float
    first_step: float
    programs: Compilations
    step_from_cache: bool


class Subject:
    """A config, ready to be measured. Data are read at once; state and programs are made when they are first needed.

    Args:
      config: a config whose top level is a `maskdit.training.run.Run`.
      synthetic: whether random images take the place of the config's.
      at: the step whose plan is measured.
      trust: packages besides `maskdit` whose classes the config may name.

    Attributes:
      config, run, task, devices: the config, the run that it describes, its task, and the mesh.
      plan: static choices of the measured step.
      first_batch: seconds from opening the source to the first batch.
      state: the run's state; None until `begin`.

    Raises:
      BenchError: where the data cannot be read, with what to do.
    """

    def __init__(self, config: ConfigDict, synthetic: bool = False, at: int = 0, trust: Iterable[str] = ()):
        self._begin = time.perf_counter()
        self.config = config
        self.run: Run = configs.build(on_this_device(config), trust)
        if synthetic:
            source = Synthetic(self.run.data.size, programs.classes(self.run.task))
            data = dataclasses.replace(self.run.data, source=source, latents=None, text=None)
            self.run = dataclasses.replace(self.run, data=data)
        if not 0 <= at < self.run.steps:
            raise BenchError(f"--at is a step of the run, 0 to {self.run.steps - 1}; got {at}")
        self.task = dataclasses.replace(self.run.task, horizon=self.run.horizon or self.run.steps)
        self.devices = self.run.mesh.make()
        self.rows = mesh.local_rows(self.devices, self.run.batch, self.run.microbatches)
        self.at = at
        self.plan = self.task.plan(at)
        self._first, self.first_batch = self._open()
        self._shapes = {
            name: jax.ShapeDtypeStruct((self.run.batch, *value.shape[1:]), value.dtype)
            for name, value in self._first.items()
            if name != "replaced"
        }
        self.task.check(self._shapes, self.run.data.vocabulary)
        self.seed = jax.jit(lambda: jax.random.key(self.run.seed), out_shardings=mesh.replicated(self.devices))()
        self.state: Any = None
        self._started: Started | None = None
        self._abstract = abstract_state(self.task, self.run.ema, self._shapes, self.devices)

    @property
    def macs(self) -> int | None:
        """Multiply-adds of one image's forward pass under the plan; None where the network has no formula."""
        return int(training_macs(self.task, self.plan)) or None

    @functools.cached_property
    def frozen(self) -> PyTree:
        """Variables of the networks that are not trained."""
        found = self.task.freeze(Draw(self.run.seed).named("freeze"), self._images)
        return jax.tree.map(placement.spread, found, mesh.shardings(found, self.devices))

    @functools.cached_property
    def resident(self) -> dict[str, Any]:
        """A batch on the devices."""
        return self.place(self._first)

    @property
    def parameters(self) -> int:
        """Number of parameters, trained and not."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._abstract.params))

    def start(self) -> Started:
        """Compiles the step and runs it once, as a run's start does; later calls give the same again."""
        if self._started is None:
            with counted() as programs:
                self.begin()
                arrays, frozen, before = self.resident, self.frozen, time.perf_counter()
                lowered = lower(
                    self.state,
                    frozen,
                    arrays,
                    self.seed,
                    task=self.task,
                    plan=self.plan,
                    groups=tasks.active_groups(self.task, self.at),
                    microbatches=self.run.microbatches,
                    devices=self.devices,
                )
                traced = time.perf_counter()
                with counted() as step:
                    self.program = compiled(lowered, self.devices)
                made = time.perf_counter()
                jax.block_until_ready(self.step(arrays))
            first = time.perf_counter() - self._begin
            self._started = Started(traced - before, made - traced, first, programs, step.from_cache > 0)
        return self._started

    def begin(self) -> TrainState:
        """The run's state; that of step 0, created sharded, at the first call."""
        if self.state is None:
            self.state = initial_state(self.task, self.run.ema, self._shapes, self.seed, self._abstract)
        return self.state

    def step(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Runs one step on a batch on the devices, after `start`; gives its metrics."""
        self.state, metrics = self.program(self.state, self.frozen, arrays, self.seed)
        return metrics

    def batches(self, start: int = 0) -> Any:
        """The loader's stream of this process's rows, from a step on."""
        return self.run.data.batches(self.run.seed, self.run.batch, start=start, rows=self.rows)

    def place(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A loader's batch on the devices, as the loop puts it there."""
        return placement.own_rows(batch, self.run.batch, mesh.batch_sharding(self.devices))

    def _open(self) -> tuple[dict[str, Any], float]:
        begin = time.perf_counter()
        try:
            with self.batches(self.at) as batches:
                return next(batches), time.perf_counter() - begin
        except (DataError, OSError) as error:
            raise BenchError(
                f"the data of this config cannot be read: {error}. Set --config.data.source.* to where they are, or "
                "measure on random images with --synthetic"
            ) from error

    def _images(self) -> Iterator[np.ndarray]:
        batch, data = min(self.run.batch, FITTED), self.run.data
        if data.latents is not None:  # there are none; random ones do as well, for how long a step takes
            source = Synthetic(data.size, {}, count=batch, pictures=batch)
            data = dataclasses.replace(data, source=source, latents=None, text=None)
        return data.images(batch, FITTED)

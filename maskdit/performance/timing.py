"""Clocks, counters, and turns: machines are noisy, so programs that are compared take turns."""

import dataclasses
import multiprocessing
import os
import pathlib
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Measured = TypeVar("Measured")
_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and most of repeated measurements."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one or more values."""
        return cls(float(np.median(values)), float(min(values)), float(max(values)))

    def inverse(self, of: float = 1.0) -> "Spread":
        """`of` divided by each: images in a block over its seconds give rates."""
        return Spread(of / self.median, of / self.most, of / self.least)

    def times(self, factor: float) -> "Spread":
        """All three multiplied by a factor that is not negative."""
        return Spread(self.median * factor, self.least * factor, self.most * factor)


@dataclasses.dataclass(frozen=True)
class Clock:
    """Wall seconds and CPU-seconds of this process and its running child processes."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Clock":
        """The present reading; only differences mean something."""
        return cls(time.perf_counter(), cpu_seconds() + sum(map(_child_seconds, multiprocessing.active_children())))

    def since(self) -> "Clock":
        """What has passed since this reading."""
        now = Clock.now()
        return Clock(now.wall - self.wall, now.cpu - self.cpu)


@dataclasses.dataclass(frozen=True)
class Rate:
    """FLOP per second of wall time, and per CPU-second."""

    wall: float
    cpu: float


def cpu_seconds() -> float:
    """CPU-seconds of this process, all its threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def alternate(turns: Mapping[str, Callable[[], Measured]], rounds: int) -> dict[str, list[Measured]]:
    """Lets functions take turns, their order reversed in every other round; gives what each returned."""
    found: dict[str, list[Measured]] = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns) if number % 2 == 0 else reversed(list(turns)):
            found[name].append(turns[name]())
    return found


@dataclasses.dataclass
class Compilations:
    """Programs that were made while `counted` was open.

    Attributes:
      programs: compiled, or read from the persistent cache.
      from_cache: those read from the cache.
    """

    programs: int = 0
    from_cache: int = 0


@contextmanager
def counted() -> Iterator[Compilations]:
    """Counts the programs that jax compiles inside."""
    count = Compilations()

    def timed(event: str, duration_secs: float, **_: Any) -> None:
        count.programs += event == _COMPILED

    def happened(event: str, **_: Any) -> None:
        count.from_cache += event == _CACHE_HIT

    jax.monitoring.register_event_duration_secs_listener(timed)
    jax.monitoring.register_event_listener(happened)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(timed)
        jax.monitoring.unregister_event_listener(happened)


@dataclasses.dataclass(frozen=True)
class MatrixProducts:
    """The rate of plain matrix products, against which steps are held: random operands, one device.

    Attributes:
      rows, inner, outer: the products are `[rows, inner] @ [inner, outer] @ [outer, inner]`.
      dtype: of all operands.
      repeats: in one measurement.
    """

    rows: int = 2048
    inner: int = 384
    outer: int = 1536
    dtype: str = "float32"
    repeats: int = 30

    def __str__(self) -> str:
        return f"{self.dtype} matrix products ({self.rows} x {self.inner} x {self.outer} and back)"

    def measure(self) -> Rate:
        """The rate now. Operands live for the measurement only."""
        draw = np.random.default_rng(0)
        shapes = ((self.rows, self.inner), (self.inner, self.outer), (self.outer, self.inner))
        a, w, v = (jnp.asarray(draw.standard_normal(shape, np.float32), self.dtype) for shape in shapes)
        _both(a, w, v).block_until_ready()
        begin, done = Clock.now(), None
        for _ in range(self.repeats):
            done = _both(a, w, v)
        jax.block_until_ready(done)
        spent, flops = begin.since(), self.repeats * 4.0 * self.rows * self.inner * self.outer
        return Rate(flops / spent.wall, flops / max(spent.cpu, 1e-9))


def matrix_products() -> MatrixProducts:
    """The products to measure here: float32 in a small transformer's shapes on a CPU, else large bfloat16 ones."""
    if jax.default_backend() == "cpu":
        return MatrixProducts()
    return MatrixProducts(8192, 8192, 8192, "bfloat16", 20)


@jax.jit
def _both(a: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
    return (a @ w) @ v


def _child_seconds(child: Any) -> float:
    """CPU-seconds of a running child process; 0 where the system does not tell."""
    try:
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

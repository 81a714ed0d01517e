"""Programs compiled ahead of time for a slice of TPUs, and what the compiler says of them.

All figures are the compiler's estimates: good for ratios and to see what fits, never a measured speed. Results are kept
on disk by the program's text, the compiler's options and the versions, since a large program takes minutes.
"""

import collections
import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import pathlib
import re
import time

import jax
from jax.sharding import Mesh

from maskdit.cache_folder import cache_folder
from maskdit.performance import hlo
from maskdit.performance.programs import Traced
from maskdit.training.step import compiled
from maskdit.training.xla import compiler_options

GIB = 2**30
_LOG = logging.getLogger(__name__)
_FORMAT = 2  # of the files that are kept; another number makes them anew
_TOO_LARGE = re.compile(r"(?:Used |temporaries \()([\d.]+)([KMG])")
_REDUCED = 2**20  # bytes from which an all-reduce is named


@dataclasses.dataclass(frozen=True)
class Moved:
    """Collectives of one kind in a program.

    Attributes:
      kind: of `maskdit.performance.hlo.KINDS`.
      asynchronous: whether other work goes on beside them.
      count: how many run.
      bytes: of the whole tensors.
      wire: what each device sends.
    """

    kind: str
    asynchronous: bool
    count: int
    bytes: int
    wire: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler says of a program on one chip.

    Attributes:
      name: of the program.
      images: of one run, on all chips.
      needed: GiB that it would take, where it does not fit; else None.
      arguments, temporaries, peak: bytes; the peak holds the two.
      moved: collectives.
      reduced: the operations whose gradients or outputs are summed whole on every chip, with their bytes.
      cycles: estimated cycles by class of operation.
      missing: what carries no estimate, with how often it runs.
      flops: of one run on one chip, by the network's formula.
      seconds: what compiling took.
    """

    name: str
    images: int
    needed: float | None
    arguments: int
    temporaries: int
    peak: int
    moved: tuple[Moved, ...]
    reduced: tuple[tuple[str, int], ...]
    cycles: dict[str, int]
    missing: dict[str, int]
    flops: float
    seconds: float

    @property
    def total_cycles(self) -> int:
        """Cycles of all classes."""
        return sum(self.cycles.values())

    @property
    def bytes(self) -> int:
        """Bytes of all collectives, whole tensors."""
        return sum(moved.bytes for moved in self.moved)

    def milliseconds(self, clock: float, ici: float) -> float:
        """A derived time: cycles at a clock (GHz), and synchronous collectives at a rate of the network (bytes/s)."""
        waiting = sum(moved.wire for moved in self.moved if not moved.asynchronous)
        return self.total_cycles / clock / 1e6 + waiting / ici * 1e3


def estimate(program: Traced, devices: Mesh) -> Estimate:
    """Compiles a program, or finds what was kept of it.

    Args:
      program: traced for the mesh.
      devices: the mesh.
    """
    file = _directory() / f"{_key(program, devices)}.json"
    if file.exists():
        return _read(file, program.name)
    begin = time.perf_counter()
    _LOG.info("compiling the %s for %d %s; minutes, for a large one", program.name, devices.size, _kind(devices))
    found = _compile(program, devices)
    found = dataclasses.replace(found, seconds=time.perf_counter() - begin)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(dataclasses.asdict(found)))
        unfinished.replace(file)
    except OSError as error:
        _LOG.warning("the result is not kept: %s; XDG_CACHE_HOME names another directory", error)
    return found


def _compile(program: Traced, devices: Mesh) -> Estimate:
    flops = 2.0 * program.macs * program.passes * program.images / devices.size
    try:
        made = compiled(program.lowered, devices)
    except jax.errors.JaxRuntimeError as error:
        large = _TOO_LARGE.search(str(error))
        if large is None or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = float(large.group(1)) / {"G": 1, "M": 1024, "K": 1024**2}[large.group(2)]
        return Estimate(program.name, program.images, needed, 0, 0, 0, (), (), {}, {}, flops, 0.0)
    text, memory = made.as_text(), made.memory_analysis()
    found, cycles = hlo.collectives(text), hlo.cycles(text)
    sums: dict[str, int] = collections.defaultdict(int)
    for one in found:
        if one.kind == "all-reduce" and one.bytes >= _REDUCED:
            sums[re.sub(r"_\d+/", "_*/", one.operation)] += one.total
    return Estimate(
        name=program.name,
        images=program.images,
        needed=None,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        moved=_moved(found),
        reduced=tuple(sorted(sums.items(), key=lambda item: -item[1])),
        cycles=cycles.by_class,
        missing=cycles.missing,
        flops=flops,
        seconds=0.0,
    )


def _moved(found: list[hlo.Collective]) -> tuple[Moved, ...]:
    groups: dict[tuple[str, bool], list[hlo.Collective]] = collections.defaultdict(list)
    for one in found:
        groups[one.kind, one.asynchronous].append(one)
    return tuple(
        Moved(kind, later, sum(c.count for c in some), sum(c.total for c in some), round(sum(c.wire for c in some)))
        for (kind, later), some in sorted(groups.items())
    )


def _key(program: Traced, devices: Mesh) -> str:
    versions = [_version(name) for name in ("jax", "jaxlib", "libtpu")]
    options = compiler_options("tpu")
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    facts = [
        _FORMAT,
        flags,
        inspect.getsource(hlo),
        program.images,
        program.macs,
        program.passes,
        devices.size,
        _kind(devices),
        options,
        versions,
    ]
    places = [str(device) for device in devices.devices.flat]
    return hashlib.sha256(json.dumps([*facts, places, program.lowered.as_text()]).encode()).hexdigest()[:32]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _read(file: pathlib.Path, name: str) -> Estimate:
    kept = json.loads(file.read_text())
    moved = tuple(Moved(**one) for one in kept.pop("moved"))
    reduced = tuple((operation, size) for operation, size in kept.pop("reduced"))
    return Estimate(**{**kept, "name": name, "moved": moved, "reduced": reduced})


def _kind(devices: Mesh) -> str:
    return str(devices.devices.flat[0].device_kind)


def _directory() -> pathlib.Path:
    return cache_folder() / "describe"

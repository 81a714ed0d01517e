"""What a config needs on a slice of TPUs: `maskdit describe --topology`, as text."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.performance import programs
from maskdit.performance.ahead import GIB, Estimate, estimate
from maskdit.performance.peaks import chip
from maskdit.performance.topology import Topology
from maskdit.training.run import Run

REMATS = ("none", "weights", "full")
"""Remat policies that a sweep tries."""
_HEADER = (
    "| config | program | loss | mesh (data x fsdp x tensor) | batch | HBM, GiB | estimated cycles, M | gathered,"
    " reduced, GiB | sent, GiB |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One setting of a sweep, with the overrides of the config that give it."""

    overrides: dict[str, Any]

    @property
    def arguments(self) -> str:
        """As the command line takes it."""
        return " ".join(f"--config.{path}={value}" for path, value in self.overrides.items())


def describe_on(run: Run, place: Topology, latents: bool, only: str | None, samples: int) -> Iterator[str]:
    """A run's programs on a slice, part by part: each compiles for minutes.

    Args:
      run: the run.
      place: the slice.
      latents: whether steps take latents that were encoded beforehand.
      only: `training` or `sampling`; None for both.
      samples: images that the sampler makes at once on each chip.
    """
    devices = run.mesh.make(place.devices)
    yield _where(place, devices, run)
    for traced in _programs(run, devices, latents, only, samples):
        yield text(estimate(traced, devices), place, devices, run)
    yield _shardings(run, devices)


def rows(name: str, run: Run, place: Topology, latents: bool, only: str | None, samples: int) -> Iterator[str]:
    """A run's programs as rows of a table; the first of all is to follow `header`."""
    try:
        devices = run.mesh.make(place.devices)
        for traced in _programs(run, devices, latents, only, samples):
            yield _row(name, estimate(traced, devices), place, devices, run)
    except ValueError as error:
        yield f"| `{name}` | {error} |{' |' * 7}"


def _programs(run: Run, devices: Mesh, latents: bool, only: str | None, samples: int) -> Iterator[programs.Traced]:
    if only != "sampling":
        yield from programs.training_steps(run, devices, latents)
    sampling = programs.sampling(run, devices, samples * devices.size) if only != "training" else None
    if sampling is not None:
        yield sampling


def header(place: Topology) -> str:
    """What stands above the rows of a slice."""
    limit = _limit(place)
    return f"On {place.name}, {len(place.devices)} chips of {limit:.2f} GiB, by the compiler's estimates:\n\n{_HEADER}"


def sweep(
    config: ConfigDict, place: Topology, latents: bool, trust: Sequence[str], asked: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Compiles the first training step of a config for every combination of mesh, remat policy and batch.

    The best is the one that takes the least derived time for an image, among those that fit.

    Args:
      config: the config.
      place: the slice.
      latents: see `describe_on`.
      trust: packages that the config may name.
      asked: values to try for `mesh` (as `1x16x1`, data x fsdp x tensor), `remat` and `batch`; others by default.

    Raises:
      ValueError: for another name, or a value that cannot be read.
    """
    best: tuple[float, str] | None = None
    for choice in _choices(config, place, asked):
        changed = config.copy_and_resolve_references()
        for path, value in choice.overrides.items():
            configs.override_text(changed, path, str(value))
        run: Run = configs.build(changed, tuple(trust))
        try:
            devices = run.mesh.make(place.devices)
            found = estimate(programs.training_steps(run, devices, latents)[0], devices)
        except ValueError as error:
            yield f"{choice.arguments}: {error}"
            continue
        if found.needed is not None:
            yield f"{choice.arguments}: needs {found.needed:.2f} of {_limit(place):.2f} GiB"
            continue
        time = found.milliseconds(place.generation.clock, place.generation.ici) / found.images
        yield (
            f"{choice.arguments}: {found.peak / GIB:.2f} GiB, {found.total_cycles / 1e6:.1f}M cycles, "
            f"{found.bytes / GIB:.2f} GiB gathered and reduced, derived {time * found.images:.0f} ms"
        )
        if best is None or time < best[0]:
            best = time, choice.arguments
    yield f"best that fits, by derived time for an image: {best[1]}" if best else "none of these fits"


def text(found: Estimate, place: Topology, devices: Mesh, run: Run) -> str:
    """An estimate as lines."""
    limit, generation = _limit(place), place.generation
    lines = [f"\n{found.name}, {found.images} images on {devices.size} chips; loss {_loss(run)}"]
    if found.needed is not None:
        return "\n".join(
            [*lines, f"  HBM      does not fit: needs {found.needed:.2f} of {limit:.2f} GiB; {_advice(run)}"]
        )
    lines += [
        f"  HBM      {found.peak / GIB:.2f} of {limit:.2f} GiB at its peak: fits; arguments "
        f"{found.arguments / GIB:.2f}, temporaries {found.temporaries / GIB:.2f}",
        f"  FLOPs    {found.flops / 1e12:.2f} TFLOP on each chip, by the network's formula, nothing recomputed counted"
        if found.flops
        else "  FLOPs    not counted: tokenizers have no formula; their parts are told by describe without a slice",
        f"  cycles   {found.total_cycles / 1e6:.1f}M estimated: "
        + ", ".join(
            f"{name} {count / 1e6:.1f}M" for name, count in sorted(found.cycles.items(), key=lambda item: -item[1])
        ),
    ]
    derived = found.milliseconds(generation.clock, generation.ici)
    share = found.flops / (derived / 1e3) / _peak(place) if derived else 0.0
    lines.append(
        f"           derived {derived:.1f} ms ({share:.0%} MFU) at {generation.clock} GHz, synchronous collectives at "
        f"{generation.ici / 1e9:.0f} GB/s; not measured"
    )
    missing = ", ".join(f"{count} {name}" for name, count in sorted(found.missing.items()) if "Concat" not in name)
    lines += [f"           without an estimate: {missing}"] if missing else []
    for moved in found.moved:
        beside = "beside other work" if moved.asynchronous else "synchronous"
        lines.append(
            f"  moves    {moved.kind:<18} {moved.count:>4} times {moved.bytes / 2**20:>7.0f} MiB of whole tensors, "
            f"{moved.wire / 2**20:>7.0f} MiB sent by each chip, {beside}"
        )
    lines += [f"  summed whole on each chip: {name}, {size / 2**20:.0f} MiB" for name, size in found.reduced[:6]]
    return "\n".join(lines)


def _row(name: str, found: Estimate, place: Topology, devices: Mesh, run: Run) -> str:
    mesh = " x ".join(str(size) for size in devices.shape.values())
    if found.needed is not None:
        figures = [f"does not fit: {found.needed:.2f} of {_limit(place):.2f}", "", "", ""]
    else:
        wire = sum(moved.wire for moved in found.moved)
        moved, sent = f"{found.bytes / GIB:.2f}", f"{wire / GIB:.2f}"
        figures = [f"{found.peak / GIB:.2f}", f"{found.total_cycles / 1e6:.1f}", moved, sent]
    loss = "" if found.name.startswith("sampling") else _loss(run)
    return f"| {' | '.join([f'`{name}`', found.name, loss, mesh, str(found.images), *figures])} |"


def _where(place: Topology, devices: Mesh, run: Run) -> str:
    mesh = ", ".join(f"{axis}={size}" for axis, size in devices.shape.items())
    _, network = programs.trained(run.task)
    how = f"; remat {network.remat}, scan {str(network.scan).lower()}" if hasattr(network, "remat") else ""
    return f"\n{place.name}: {len(place.devices)} x {place.kind}; mesh {mesh}{how}; by the compiler's estimates"


def _advice(run: Run) -> str:
    name, network = programs.trained(run.task)
    remat = getattr(network, "remat", None)
    less = {"none": "weights", "weights": "full", "dots": "full", "dots_all": "dots"}.get(remat or "")
    ways = [f"--config.task.{name}.remat={less}"] if less else []
    if run.mesh.fsdp == 1:
        ways.append("--config.mesh.data=1 --config.mesh.fsdp=-1")
    ways += [f"--config.microbatches={2 * run.microbatches}", "a smaller --config.batch", "more chips"]
    return "try " + ", or ".join(ways)


def _shardings(run: Run, devices: Mesh) -> str:
    """Where parameters lie; those of equal blocks in one line."""
    groups: dict[tuple[str, tuple[int, ...], str], int] = {}
    for path, shape, spec in programs.parameter_shardings(run, devices):
        entries = ", ".join("-" if axis is None else str(axis) for axis in spec) if any(spec) else "whole on each chip"
        key = re.sub(r"_\d+/", "_*/", path), tuple(shape), entries
        groups[key] = groups.get(key, 0) + 1
    lines = ["\nparameters: shape, and the mesh axis that cuts each of its axes"]
    width = max(len(path) for path, _, _ in groups)
    for (path, shape, entries), count in groups.items():
        times = f"  x {count}" if count > 1 else ""
        lines.append(f"  {path:<{width}}  {' x '.join(map(str, shape)):<18} {entries}{times}")
    return "\n".join(lines)


def _choices(config: ConfigDict, place: Topology, asked: Mapping[str, Sequence[str]]) -> list[Choice]:
    unknown = set(asked) - {"mesh", "remat", "batch"}
    if unknown:
        raise ValueError(f"a sweep takes mesh, remat and batch; got {min(unknown)}")
    count = len(place.devices)
    usual = [f"1x{count}x1", f"{count}x1x1", f"1x{count // 2}x2"] if count > 1 else ["1x1x1"]
    meshes = asked.get("mesh") or usual
    batches = asked.get("batch") or [str(config.batch), str(2 * config.batch)]
    part = "network" if "network" in config.task else "tokenizer"
    remats: Sequence[str | None] = asked.get("remat") or (REMATS if "remat" in config.task[part] else (None,))
    found = []
    for mesh, remat, batch in itertools.product(meshes, remats, batches):
        sizes = mesh.split("x")
        if len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
            raise ValueError(f"a mesh of a sweep is data x fsdp x tensor, such as 1x{count}x1; got '{mesh}'")
        overrides: dict[str, Any] = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), sizes, strict=True))
        overrides |= {} if remat is None else {f"task.{part}.remat": remat}
        found.append(Choice({**overrides, "batch": batch}))
    return found


def _loss(run: Run) -> str:
    process = getattr(run.task, "process", None)
    if process is None:
        return "cross entropy" if hasattr(run.task, "network") else "reconstruction"
    return type(process).__name__ + (", learned variance" if getattr(process, "learned_variance", False) else "")


def _limit(place: Topology) -> float:
    found = chip(place.kind)
    return found.memory if found else float("nan")


def _peak(place: Topology) -> float:
    found = chip(place.kind)
    return found.flops if found else float("inf")

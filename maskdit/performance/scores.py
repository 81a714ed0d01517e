"""`maskdit bench scores`: what a score costs beside the network it is made with, and whether it orders images rightly.

Parts, by the names of `PARTS`:
- `frechet`: seconds and memory of a Fréchet distance of many wide features, from features on the device to the figure;
  each step is a process of its own, on the CPU.
- `devices`: the same distance from 1 and from 8 devices, virtual ones of the CPU.
- `rate`: images per second of making features and their statistics from images in host memory, beside the network's
  bare forward pass on images that lie ready on the device. They take turns.
- `order`: distances of held-out, blurred and noisy images to training images.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.encoders.inception import InceptionV3
from maskdit.evals import network as networks
from maskdit.evals.collector import Collector
from maskdit.evals.frechet import Gaussian, frechet_distance
from maskdit.evals.network import FeatureNetwork
from maskdit.performance import one_distance
from maskdit.performance.subject import BenchError
from maskdit.performance.timing import Clock, Spread, alternate
from maskdit.training import placement
from maskdit.training.mesh import MeshShape, applied, batch_sharding, replicated, unboxed

NAME = "scores"
PARTS = ("frechet", "devices", "rate", "order")
SHARE, APART = 0.9, 1e-6
"""The share of the bare pass's rate that making features should reach; how far distances may be apart, of the trace."""
ROUTES = {"frechet_distance": "a symmetric eigenproblem", "torch_fidelity": "eigenvalues of the product"}
"""Functions of `maskdit.evals.frechet` that are compared, in words."""
BLURS, NOISES = (1.0, 2.0, 4.0), (8.0, 32.0, 128.0)
"""Standard deviations of blurs, in pixels, and of noise, in levels of 256."""


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What features are made of.

    Attributes:
      name: of the network and its images.
      network: the feature network.
      size: side of the images in host memory.
      batch: images at once.
      batches: of a turn.
      turns: in a round; short ones, as a machine's load changes within a minute.
    """

    name: str
    network: FeatureNetwork
    size: int
    batch: int
    batches: int
    turns: int


def offline() -> Extraction:
    """The network that ships, at 64 pixels."""
    return Extraction("emoji-classifier, images of 64 pixels", networks.find(), 64, 64, 32, 4)


def inception() -> Extraction:
    """Inception at 299 pixels with random weights, on images of 256 pixels."""
    module = InceptionV3()
    made = jax.jit(lambda key: unboxed(module.init(key, jnp.zeros((1, 75, 75, 3)))))(jax.random.key(0))
    network = FeatureNetwork("inception", module, made, module.PREPROCESSING["tf1-bilinear"], None, "")
    return Extraction("Inception at 299 pixels, images of 256", network, 256, 16, 3, 3)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
      count, width, batch: features of each of two sets, their width, and how many are added at once.
      extractions: whose rate is measured.
      limit: at most so many images of each split of the emoji; None for all.
    """

    count: int = 50_000
    width: int = 2048
    batch: int = 64
    extractions: tuple[Callable[[], Extraction], ...] = (offline, inception)
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a distance: wall seconds, CPU-seconds of all threads, and the peak of bytes above the start."""

    name: str
    seconds: Spread
    cpu: Spread
    memory: int


@dataclasses.dataclass(frozen=True)
class Distance:
    """The steps of a distance.

    Attributes:
      what: the sets of features, in words.
      steps: the statistics of one set, and the distance by each route.
      distances: by each of `ROUTES`.
      apart: how far these are from each other, of the trace of both covariances.
    """

    what: str
    steps: tuple[Step, ...]
    distances: tuple[float, ...]
    apart: float


@dataclasses.dataclass(frozen=True)
class Devices:
    """One distance from several numbers of devices.

    Attributes:
      devices, distances: the numbers, and the distance from each.
      images: of both sets.
      apart: the largest difference of distances, of the trace of both covariances.
    """

    devices: tuple[int, ...]
    distances: tuple[float, ...]
    images: tuple[int, ...]
    apart: float


@dataclasses.dataclass(frozen=True)
class Rate:
    """Rates of an extraction, whose fixed costs at the start and the end are counted.

    Attributes:
      what: the extraction, in words.
      bare, scored: images per second.
      ratio: of the two rates, in each pair of turns.
      share: median of `ratio`.
      cpu: `ratio` by CPU-seconds, which other processes disturb less.
    """

    what: str
    bare: Spread
    scored: Spread
    ratio: Spread
    share: float
    cpu: Spread


@dataclasses.dataclass(frozen=True)
class Order:
    """Distances to training images by the network that ships.

    Attributes:
      images: training images, and images of each set below.
      distances: by what the images are, in words.
      right: whether held-out images are nearer than blurred ones, and these nearer than noise alone.
      breaks: images that are nearer than those with less of the same disturbance; empty where all distances rise.
    """

    images: tuple[int, int]
    distances: dict[str, float]
    right: bool
    breaks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found; None for what was not asked for."""

    frechet: Distance | None = None
    devices: Devices | None = None
    rate: tuple[Rate, ...] | None = None
    order: Order | None = None


def measure(rounds: int, parts: Sequence[str] = PARTS, case: Case | None = None) -> Found:
    """Measures some parts.

    Args:
      rounds: turns of each program, and processes of each step.
      parts: of `PARTS`.
      case: what is measured.

    Raises:
      BenchError: for unknown parts, and where a process fails.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise BenchError(f"there is no part '{unknown[0]}' of bench {NAME}: use some of {', '.join(PARTS)}")
    case = case or Case()
    found: dict[str, Any] = {}
    if "frechet" in parts:
        found["frechet"] = _frechet(case, rounds)
    if "devices" in parts:
        found["devices"] = _devices(_run("devices", *(() if case.limit is None else (case.limit,))))
    if "rate" in parts:
        found["rate"] = tuple(rate(make(), rounds) for make in case.extractions)
    if "order" in parts:
        found["order"] = order(case.limit)
    return Found(**found)


def rate(what: Extraction, rounds: int) -> Rate:
    """Lets the bare forward pass and the making of features and statistics take turns."""
    network, devices = what.network, MeshShape().make()
    batch = -(-what.batch // placement.ways(devices)) * placement.ways(devices)
    count = batch * what.batches
    images = np.random.default_rng(0).integers(0, 256, (count, what.size, what.size, 3), np.uint8)
    with applied(devices):
        ready = placement.spread(
            np.asarray(network.preprocessing(jnp.asarray(images[:batch]))), batch_sharding(devices)
        )
    variables = placement.spread(network.variables, replicated(devices))
    given = dataclasses.replace(network, variables=variables)

    @jax.jit
    def forward(variables: Any, x: Any) -> Any:
        with jax.default_matmul_precision("highest"):  # as scores are made
            return network.module.apply(variables, x)

    def bare() -> Clock:
        with applied(devices):
            begin = Clock.now()
            jax.block_until_ready([forward(variables, ready) for _ in range(what.batches)])
            return begin.since()

    def scored() -> Clock:
        begin = Clock.now()
        collector = Collector(given, batch=batch, devices=devices)
        for start in range(0, count, batch):
            collector.add(images[start : start + batch])
        collector.finish()
        return begin.since()

    bare(), scored()  # compile
    spent = alternate({"bare": bare, "scored": scored}, rounds * what.turns)
    pairs = list(zip(spent["bare"], spent["scored"], strict=True))
    ratio, cpu = Spread.of([b.wall / s.wall for b, s in pairs]), Spread.of([b.cpu / s.cpu for b, s in pairs])
    bare_rate, scored_rate = (Spread.of([turn.wall for turn in turns]).inverse(count) for turns in spent.values())
    return Rate(f"{what.name}, batch {batch}, {count} images", bare_rate, scored_rate, ratio, ratio.median, cpu)


def order(limit: int | None = None) -> Order:
    """Distances of held-out images, as they are and spoilt, to training images.

    Args:
      limit: at most so many images of each split; None for all.
    """
    network = networks.find()
    train, held = (np.concatenate(list(_emoji(split).images(256, limit))) for split in ("train", "val"))
    real, noise = "held out", "noise alone"
    reference = _gaussian(network, train)
    alone = np.random.default_rng(1).integers(0, 256, held.shape, np.uint8)
    blurs = {f"blurred by {sigma:g} px": blurred(held, sigma) for sigma in BLURS}
    noises = {f"noise of {level:g} levels": noisy(held, level) for level in NOISES}
    sets = {real: held, **blurs, **noises, noise: alone}
    distances = {name: frechet_distance(_gaussian(network, images), reference) for name, images in sets.items()}
    right = all(distances[real] < distances[name] < distances[noise] for name in blurs)
    rows = ((real, *blurs, noise), (real, *noises, noise))
    breaks = tuple(b for row in rows for a, b in itertools.pairwise(row) if distances[b] <= distances[a])
    return Order((len(train), len(held)), distances, right, breaks)


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """Images uint8 `[N, H, W, 3]` under a Gaussian blur, their edge pixels repeated, rounded to uint8."""
    reach = int(np.ceil(4 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    out = images.astype(np.float32)
    for axis in (1, 2):
        side = out.shape[axis]
        padded = np.pad(out, [(reach, reach) if i == axis else (0, 0) for i in range(4)], mode="edge")
        moved = np.lib.stride_tricks.sliding_window_view(padded, side, axis)  # [N, H', W', 3, side], of 2 reach + 1
        out = np.moveaxis(np.tensordot(moved, weights, (axis, 0)), -1, axis)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def noisy(images: np.ndarray, level: float) -> np.ndarray:
    """Images uint8 with normal noise of a standard deviation in levels, rounded and cut to 0..255."""
    noise = np.random.default_rng(0).standard_normal(images.shape, np.float32)
    return np.clip(np.rint(images + level * noise), 0, 255).astype(np.uint8)


def table(found: Found) -> str:
    """What was found as lines of text."""
    lines: list[str] = []
    if (distance := found.frechet) is not None:
        lines.append(f"Fréchet distance, {distance.what}: {'seconds':>17}  {'min to max':>15}  CPU-seconds    memory")
        for step in distance.steps:
            span = f"{step.seconds.least:.1f} to {step.seconds.most:.1f}"
            lines.append(
                f"  {step.name:<58}{step.seconds.median:>9.1f}  {span:>15}  {step.cpu.median:>11.1f}  "
                f"{step.memory / 1e6:>5.0f} MB"
            )
        lines.append(f"  {_both(distance.distances, distance.apart)}")
    if (devices := found.devices) is not None:
        numbers = " and ".join(map(str, devices.devices))
        sets = " and ".join(f"{count:,}" for count in devices.images)
        verdict = "pass" if devices.apart <= APART else "MISS"
        said = _both(devices.distances, devices.apart)
        lines.append(f"{numbers} devices, FD (emoji-classifier) of {sets} images: {said}, <= {APART:g} {verdict}")
    for one in found.rate or ():
        lines.append(f"{one.what}, images/s")
        for name, speed in (("bare forward", one.bare), ("scored", one.scored)):
            lines.append(f"  {name:<14}{speed.median:>9.1f}  {speed.least:.1f} to {speed.most:.1f}")
        verdict = "pass" if one.share >= SHARE else "MISS"
        span = f"{one.ratio.least:.3f} to {one.ratio.most:.3f}"
        lines.append(f"  {'ratio':<14}{one.share:>9.3f}  {span}  >= {SHARE} {verdict}")
        lines.append(f"  {'in CPU-seconds':<14}{one.cpu.median:>9.3f}  {one.cpu.least:.3f} to {one.cpu.most:.3f}")
    if (ordered := found.order) is not None:
        train, held = ordered.images
        lines.append(f"FD (emoji-classifier) of {held:,} images to {train:,} training images")
        lines += [f"  {name:<22}{value:>10.3f}" for name, value in ordered.distances.items()]
        lines.append(f"  held out < blurred < noise alone: {'pass' if ordered.right else 'MISS'}")
        broken = f"everywhere but at {', '.join(ordered.breaks)}" if ordered.breaks else "everywhere"
        lines.append(f"  more blur or noise is farther: {broken}")
    return "\n".join(lines)


def _both(distances: Sequence[float], apart: float) -> str:
    return f"{' and '.join(f'{value:.9g}' for value in distances)}, {apart:.1e} of the trace apart"


def _frechet(case: Case, rounds: int) -> Distance:
    streamed: list[dict[str, float]] = []
    by_route: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="maskdit-scores-") as folder:
        files = [str(pathlib.Path(folder) / f"{seed}.npz") for seed in range(2)]
        for _ in range(rounds):
            streamed += _run("statistics", case.count, case.width, case.batch, *files)
        turns = {route: functools.partial(_run, "distance", route, *files) for route in ROUTES}
        by_route = alternate(turns, rounds)
    steps = [_step(f"statistics of one set, in batches of {case.batch}", streamed)]
    steps += [_step(f"distance by {words}", by_route[route]) for route, words in ROUTES.items()]
    distances = tuple(by_route[route][0]["distance"] for route in ROUTES)
    apart = (max(distances) - min(distances)) / by_route["frechet_distance"][0]["trace"]
    return Distance(f"2 sets of {case.count:,} x {case.width}", tuple(steps), distances, apart)


def _step(name: str, found: list[dict[str, float]]) -> Step:
    seconds, cpu = (Spread.of([one[key] for one in found]) for key in ("seconds", "cpu"))
    return Step(name, seconds, cpu, int(max(one["memory"] for one in found)))


def _devices(said: dict[str, Any]) -> Devices:
    distances = tuple(said["distances"])
    apart = (max(distances) - min(distances)) / said["trace"]
    return Devices(one_distance.DEVICES, distances, tuple(said["images"]), apart)


def _run(*arguments: Any) -> Any:
    """What a step of `maskdit.performance.one_distance` finds, in a process with as many CPU devices as it needs."""
    count = max(one_distance.DEVICES) if arguments[0] == "devices" else 1
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={count}")
    done = subprocess.run(
        [sys.executable, "-m", "maskdit.performance.one_distance", *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"the step '{arguments[0]}' of a distance failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _emoji(split: str) -> Loader:
    return Loader(Emoji(split), flip=False, shuffle=False)


def _gaussian(network: FeatureNetwork, images: np.ndarray) -> Gaussian:
    collector = Collector(network)
    collector.add(images)
    return collector.finish().pooled

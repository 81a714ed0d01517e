"""`maskdit bench --gates`: what must hold on a CPU, each beside what was measured.

Shares and ratios are in CPU-seconds and within one run; times of single events are by wall time, so a busy machine
makes them longer.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from maskdit import config as configs
from maskdit.data.emoji import Emoji
from maskdit.data.folder import Folder
from maskdit.data.loader import Loader
from maskdit.performance import measure as parts
from maskdit.performance import programs, workloads
from maskdit.performance.subject import BenchError, Subject
from maskdit.performance.timing import counted, cpu_seconds
from maskdit.tokenizers.pixels import Pixels
from maskdit.training.precision import on_this_device
from maskdit.training.step import compiled

FAST = 180e9
"""FLOP per CPU-second of matrix products from which attention and element-wise work weigh more, and 60 % are enough."""
STEPS = 50
PICTURES = 1024
_TRANSFERS = ("python_cpu_callback", "python_gpu_callback", "infeed(", "outfeed(", " send(", " recv(")


@dataclasses.dataclass(frozen=True)
class Gate:
    """A row of the table.

    Attributes:
      name: what is measured.
      must: what it must be.
      measured: what it was.
      passed: whether it holds; None where there is nothing to hold it against.
    """

    name: str
    must: str
    measured: str
    passed: bool | None


def measure(rounds: int) -> list[Gate]:
    """All gates, in minutes; `rounds` is the number of turns of programs that are compared."""
    stages: dict[str, Callable[[], list[Gate]]] = {
        "C1, C2: steps against matrix products": functools.partial(_shares, rounds),
        "compilations and transfers": _steady,
        "compile time": _scanned_compile,
        "D1: loader": functools.partial(_loader, rounds),
        "K1: checkpoint": functools.partial(_stall, rounds),
        "M1: collectives": _collectives,
    }
    rows: list[Gate] = []
    for name, stage in stages.items():
        print(f"measuring {name}", flush=True)
        rows += stage()
    return rows


def table(rows: list[Gate]) -> str:
    """The gates as lines of text."""
    words = {True: "pass", False: "MISS", None: "-"}
    cells = [("gate", "must", "measured", "")] + [(row.name, row.must, row.measured, words[row.passed]) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return "\n".join(
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=True)), row[3]]) for row in cells
    )


def at_least(name: str, value: float, must: float, form: str) -> Gate:
    """A gate on a number that must not be below `must`; `form` formats both."""
    return Gate(name, f">= {must:{form}}", f"{value:{form}}", value >= must)


def at_most(name: str, value: float, must: float, form: str, unit: str = "", said: str = "") -> Gate:
    """A gate on a number that must not be above `must`; `said` follows the number."""
    return Gate(name, f"<= {must:{form}}{unit}", f"{value:{form}}{unit}{said}", value <= must)


def _shares(rounds: int) -> list[Gate]:
    c1, c2 = (workloads.measure(workload, rounds) for workload in workloads.NAMES)
    fast = min(c1.rate.median, c2.rate.median) >= FAST
    own, half, quarter = (f"MaskDiT, {ratio} % masked" for ratio in (0, 50, 75))
    share = "share of the matrix-product rate"
    return [
        at_least(f"C1 DiT-S/2, {share}", c1.share("DiT-S/2"), 0.60 if fast else 0.70, ".0%"),
        *(at_least(f"C2 {name}, {share}", c2.share(name), 0.60 if fast else 0.72, ".0%") for name in (own, half)),
        at_least(f"C2 {quarter}, {share}", c2.share(quarter), 0.60, ".0%"),
        at_least("C2 50 % masked against its own unmasked step", c2.ratio(own, half), 1.75, ".2f"),
        at_least("C2 75 % masked against its own unmasked step", c2.ratio(own, quarter), 2.8, ".2f"),
        at_least("C2 50 % masked against the plain DiT", c2.ratio("DiT", half), 1.65, ".2f"),
    ]


def _steady() -> list[Gate]:
    """Compilations in steps of the loop's path, and transfers that a step makes on its own."""
    subject = Subject(configs.load("maskdit_emoji:smoke"))
    subject.start()
    arrays = subject.resident
    with subject.batches() as batches, counted() as count, jax.transfer_guard("disallow"):
        for _ in range(STEPS):
            metrics = subject.step(subject.place(next(batches)))
            jax.device_get(metrics)
    text = subject.program.as_text()
    transfers, refused = sum(text.count(name) for name in _TRANSFERS), ""
    try:
        with jax.transfer_guard("disallow_explicit"):
            jax.block_until_ready(subject.step(arrays))
    except jax.errors.JaxRuntimeError as error:
        transfers, refused = transfers + 1, f": {str(error).splitlines()[0]}"
    return [
        Gate(f"compilations in {STEPS} steps", "0", str(count.programs), count.programs == 0),
        Gate("transfers to or from the host in a step", "0", f"{transfers}{refused}", transfers == 0),
    ]


def _scanned_compile() -> list[Gate]:
    """Tracing and compiling the step of a scanned DiT-XL/2, without the persistent cache."""
    config = configs.load("dit_imagenet256:XL/2", {"batch": 8, "task.network.scan": True})
    run = configs.build(on_this_device(config))
    one = run.mesh.make(jax.devices()[:1])
    cache = "jax_enable_compilation_cache"
    used = getattr(jax.config, cache)
    jax.config.update(cache, False)
    compilation_cache.reset_cache()
    try:
        begin, cpu = time.perf_counter(), cpu_seconds()
        lowered = programs.training_steps(run, one, latents=True)[0].lowered
        traced = time.perf_counter() - begin
        compiled(lowered, one)
        wall, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    finally:
        jax.config.update(cache, used)
        compilation_cache.reset_cache()
    said = f" (trace {traced:.1f} s; {cpu:.1f} CPU-s, load average {os.getloadavg()[0]:.1f})"
    return [at_most("trace and compile the step of DiT-XL/2, scanned", wall, 20.0, ".1f", " s", said)]


def _loader(rounds: int) -> list[Gate]:
    """Batches of 256 from a folder of PNG files of 64 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        emoji = Emoji()
        for number in range(PICTURES):
            record = emoji[number]
            path = pathlib.Path(folder) / f"{record['group']}" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(record["image"]).save(path)
        figures = parts.stream(Loader(Folder(folder), size=64), 256, rounds)
    wall, cpu = (shown.value for shown in figures[:2])
    return [
        Gate("D1 loader, 64-pixel PNG files, batch 256", "no peer here", f"{wall:,.0f} images/s", None),
        Gate("D1 the same by CPU-seconds", "no peer here", f"{cpu:,.0f} images per CPU-s", None),
    ]


def _stall(rounds: int) -> list[Gate]:
    """How long saving the whole state of DiT-S/2 (0.5 GB) holds up the loop."""
    config = configs.load("dit_imagenet256:S/2", {"batch": 1})
    config.task.tokenizer = configs.spec(Pixels)
    config.data.size, config.task.network.channels = 32, 3
    with tempfile.TemporaryDirectory() as folder:
        found = {figure.name: figure for figure in parts.saving(Subject(config, synthetic=True), rounds, folder)}
    stall, total = found["checkpoint.stall"], found["checkpoint.total"]
    gigabytes = found["checkpoint.bytes"].value / 1e9
    said = f" (up to {stall.most:.3f} s; complete after {total.value:.1f} s)"
    return [at_most(f"K1 checkpoint, {gigabytes:.2f} GB: stall", stall.value, 0.1, ".3f", " s", said)]


def _collectives() -> list[Gate]:
    """Bytes of collectives on 8 devices, in a process of its own: this one's number of devices is fixed."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    done = subprocess.run(
        [sys.executable, "-m", "maskdit.performance.mesh_bytes"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"the collectives could not be measured: {done.stderr.strip()[-500:]}")
    rows: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return [
        at_most(
            f"M1 {name} of DiT-XL/2: bytes of collectives over the formula's {row['formula'] / 1e9:.2f} GB",
            row["bytes"] / row["formula"],
            row["must"],
            ".2f",
            "x",
            f" ({', '.join(f'{kind} {size / 1e9:.2f}' for kind, size in row['kinds'].items())} GB)",
        )
        for name, row in rows.items()
    ]

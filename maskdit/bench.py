"""`maskdit bench`: training steps in CPU-seconds, beside the matrix-product rate of the same run.

Machines are noisy and shared, so what counts are shares and ratios: programs take turns in one process, their order
reversed every round, and the rate of float32 matrix products is measured between them. A step is the training loop's
own: loss, gradients, AdamW and an average of the weights, on resident data.
"""

import dataclasses
import functools
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Plan
from maskdit.networks.dit import DiT, size
from maskdit.networks.maskdit import MaskDiT
from maskdit.processes.ddpm import DDPM
from maskdit.processes.edm import EDM
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.pixels import Pixels
from maskdit.training.mesh import unboxed
from maskdit.training.step import create, train_step

LATENT = {"input_size": 32, "patch": 2, "channels": 4, "classes": {"label": 1000}}
WARM = 5
"""Steps of each program before any is timed: the allocator finds its size."""
HALF = {**LATENT, "width": 576, "depth": 14, "heads": 8}
DECODER = {"decoder_width": 256, "decoder_depth": 4, "decoder_heads": 8}


@dataclasses.dataclass
class Program:
    """A training step to be timed: `step` runs it once and returns something to wait for."""

    name: str
    flops: float
    step: Callable[[], Any]
    seconds: list[float] = dataclasses.field(default_factory=list)


def bench(workload: str, rounds: int = 3, steps: int = 2) -> dict[str, Program]:
    """Times a workload and prints a table.

    Args:
      workload: `c1`: DiT-S/2 on 32 x 32 x 4 latents, batch 8. `c2`: MaskDiT (14 blocks of 576, decoder 4 of 256)
        with 0, 50 and 75 % of the patches masked, and the plain DiT of that size, batch 4.
      rounds: how often each program has its turn.
      steps: steps in a turn.
    """
    print(f"{workload}: compiling", flush=True)
    programs = {"c1": _c1, "c2": _c2}[workload]()
    product = _matrix_product()
    for program in programs:
        jax.block_until_ready([program.step() for _ in range(WARM)])
    rates = [product()]
    for number in range(rounds):
        for program in programs if number % 2 == 0 else reversed(programs):
            begin, done = _cpu_seconds(), None
            for _ in range(steps):
                done = program.step()
            jax.block_until_ready(done)
            program.seconds.append((_cpu_seconds() - begin) / steps)
            rates.append(product())
    print(_table(programs, float(np.median(rates)), rates))
    return {program.name: program for program in programs}


def _c1() -> list[Program]:
    network = DiT(**{**LATENT, **size("S/2")}, learned_variance=True)
    return [_program("DiT-S/2", Generator(network, DDPM(learned_variance=True), Pixels()), batch=8)]


def _c2() -> list[Program]:
    plain = Generator(DiT(**HALF), EDM(), Pixels())
    masked = Generator(MaskDiT(**HALF, **DECODER), EDM(), Pixels())
    programs = [_program("DiT", plain, batch=4)]
    for ratio, keep in ((0, None), (50, 128), (75, 64)):
        programs.append(_program(f"MaskDiT, {ratio} % masked", masked, batch=4, keep=keep))
    return programs


def _program(name: str, task: Generator, batch: int, keep: int | None = None) -> Program:
    """Compiles a task's training step and makes its state and data."""
    task = dataclasses.replace(task, horizon=1000)
    draw = np.random.default_rng(0)
    rows = jax.device_put(
        {
            "image": draw.integers(0, 256, (batch, *task.layout.shape)).astype(np.uint8),
            "label": draw.integers(0, 1000, batch).astype(np.int32),
            "row": np.arange(batch, dtype=np.int32),
        }
    )
    seed = jax.random.key(0)
    frozen: dict[str, Any] = {"tokenizer": {}}
    state = jax.jit(lambda key: unboxed(create(task, (0.9999,), rows, key)))(seed)
    step = functools.partial(train_step, task=task, plan=Plan(keep), groups=("generator",), microbatches=1)
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, rows, seed).compile()
    holder = [state]

    def run() -> Any:
        holder[0], metrics = compiled(holder[0], frozen, rows, seed)
        return metrics["loss"]

    return Program(name, 6.0 * task.network.macs(keep) * batch, run)


def _matrix_product(repeats: int = 30) -> Callable[[], float]:
    """A function that measures float32 matrix products, in FLOP per CPU-second."""
    draw = np.random.default_rng(0)
    a, w, v = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in ((2048, 384), (384, 1536), (1536, 384)))
    both = jax.jit(lambda a, w, v: (a @ w) @ v)
    both(a, w, v).block_until_ready()

    def measure() -> float:
        begin, done = _cpu_seconds(), None
        for _ in range(repeats):
            done = both(a, w, v)
        jax.block_until_ready(done)
        return repeats * 4.0 * 2048 * 384 * 1536 / (_cpu_seconds() - begin)

    return measure


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _table(programs: list[Program], rate: float, rates: list[float]) -> str:
    lines = [
        f"{time.strftime('%Y-%m-%d')}, jax {jax.__version__}, {jax.default_backend()}; float32 matrix products: median "
        f"{rate / 1e9:.0f}, {min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f} GFLOP per CPU-second",
        f"{'program':<24}{'CPU-s per step':>16}{'min':>8}{'GFLOP':>9}{'share of rate':>15}",
    ]
    for program in programs:
        median, least = float(np.median(program.seconds)), min(program.seconds)
        share = program.flops / median / rate
        lines.append(f"{program.name:<24}{median:>16.3f}{least:>8.3f}{program.flops / 1e9:>9.1f}{share:>14.0%}")
    medians = {program.name: float(np.median(program.seconds)) for program in programs}
    if len(programs) > 1:
        half, quarter = medians["MaskDiT, 50 % masked"], medians["MaskDiT, 75 % masked"]
        lines += [
            f"50 % masked against own unmasked step   {medians['MaskDiT, 0 % masked'] / half:.2f}x",
            f"50 % masked against the plain DiT       {medians['DiT'] / half:.2f}x",
            f"75 % masked against own unmasked step   {medians['MaskDiT, 0 % masked'] / quarter:.2f}x",
        ]
    return "\n".join(lines)

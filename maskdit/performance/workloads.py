"""`maskdit bench c1` and `c2`: training steps in CPU-seconds, beside the matrix-product rate of the same run.

Machines are noisy and shared, so what counts are shares and ratios: programs take turns in one process, their order
reversed every round, and the rate of float32 matrix products is measured between them. A step is the training loop's
own: loss, gradients, AdamW and an average of the weights, on resident data.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maskdit.contracts import Plan
from maskdit.networks.dit import DiT, size
from maskdit.networks.maskdit import MaskDiT
from maskdit.performance.peaks import training_flops
from maskdit.performance.timing import MatrixProducts, Spread, alternate, cpu_seconds
from maskdit.processes.ddpm import DDPM
from maskdit.processes.edm import EDM
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.pixels import Pixels
from maskdit.training.mesh import MeshShape
from maskdit.training.step import abstract_state, compiled, initial_state, lower

LATENT = {"input_size": 32, "patch": 2, "channels": 4, "classes": {"label": 1000}}
WARM = 5
"""Steps of each program before any is timed: the allocator finds its size."""
HALF = {**LATENT, "width": 576, "depth": 14, "heads": 8}
DECODER = {"decoder_width": 256, "decoder_depth": 4, "decoder_heads": 8}
NAMES = ("c1", "c2")


@dataclasses.dataclass
class Program:
    """A training step to be timed: `step` runs it once and returns something to wait for.

    Attributes:
      name: of the program.
      flops: of one step.
      step: runs one.
      seconds: CPU-seconds of a step, of each turn.
    """

    name: str
    flops: float
    step: Callable[[], Any]
    seconds: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a workload's run found.

    Attributes:
      programs: by name.
      rate: FLOP per CPU-second of matrix products.
    """

    programs: dict[str, Program]
    rate: Spread

    def share(self, name: str) -> float:
        """The share of the matrix-product rate that a program reached."""
        return self.programs[name].flops / self.seconds(name) / self.rate.median

    def seconds(self, name: str) -> float:
        """Median CPU-seconds of a program's step."""
        return float(np.median(self.programs[name].seconds))

    def ratio(self, slow: str, fast: str) -> float:
        """How many times faster one program's step is than another's."""
        return self.seconds(slow) / self.seconds(fast)


def measure(workload: str, rounds: int = 3, steps: int = 2) -> Outcome:
    """Times a workload and prints a table.

    Args:
      workload: `c1`: DiT-S/2 on 32 x 32 x 4 latents, batch 8. `c2`: MaskDiT (14 blocks of 576, decoder 4 of 256)
        with 0, 50 and 75 % of the patches masked, and the plain DiT of that size, batch 4.
      rounds: how often each program has its turn.
      steps: steps in a turn.
    """
    print(f"{workload}: compiling", flush=True)
    programs = {"c1": _c1, "c2": _c2}[workload]()
    product = MatrixProducts()
    for program in programs:
        jax.block_until_ready([program.step() for _ in range(WARM)])
    rates = [product.measure().cpu]

    def turn(program: Program) -> float:
        begin, done = cpu_seconds(), None
        for _ in range(steps):
            done = program.step()
        jax.block_until_ready(done)
        seconds = (cpu_seconds() - begin) / steps
        rates.append(product.measure().cpu)
        return seconds

    found = alternate({program.name: functools.partial(turn, program) for program in programs}, rounds)
    for program in programs:
        program.seconds = found[program.name]
    outcome = Outcome({program.name: program for program in programs}, Spread.of(rates))
    print(_table(outcome))
    return outcome


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


def latent_rows(task: Generator, batch: int) -> dict[str, Any]:
    """A batch of random latents for a generator without a tokenizer, with labels of 1000 classes."""
    draw = np.random.default_rng(0)
    return {
        "image": draw.integers(0, 256, (batch, *task.layout.shape)).astype(np.uint8),
        "label": draw.integers(0, 1000, batch).astype(np.int32),
        "row": np.arange(batch, dtype=np.int32),
    }


def _program(name: str, task: Generator, batch: int, keep: int | None = None) -> Program:
    """Compiles a task's training step and makes its state and data."""
    task = dataclasses.replace(task, horizon=1000)
    rows = jax.device_put(latent_rows(task, batch))
    seed = jax.random.key(0)
    frozen: dict[str, Any] = {"tokenizer": {}}
    alone, decays = MeshShape().make(jax.devices()[:1]), (0.9999,)
    state = initial_state(task, decays, rows, seed, abstract_state(task, decays, rows, alone))
    static: dict[str, Any] = {"task": task, "plan": Plan(keep), "groups": ("generator",), "microbatches": 1}
    step = compiled(lower(state, frozen, rows, seed, **static, devices=alone), alone)
    holder = [state]

    def run() -> Any:
        holder[0], metrics = step(holder[0], frozen, rows, seed)
        return metrics["loss"]

    return Program(name, training_flops(task.network.macs(keep)) * batch, run)


def _table(outcome: Outcome) -> str:
    rate = outcome.rate
    lines = [
        f"{time.strftime('%Y-%m-%d')}, jax {jax.__version__}, {jax.default_backend()}; float32 matrix products: median "
        f"{rate.median / 1e9:.0f}, {rate.least / 1e9:.0f} to {rate.most / 1e9:.0f} GFLOP per CPU-second",
        f"{'program':<24}{'CPU-s per step':>16}{'min':>8}{'GFLOP':>9}{'share of rate':>15}",
    ]
    for name, program in outcome.programs.items():
        median, least = outcome.seconds(name), min(program.seconds)
        lines.append(f"{name:<24}{median:>16.3f}{least:>8.3f}{program.flops / 1e9:>9.1f}{outcome.share(name):>14.0%}")
    if len(outcome.programs) > 1:
        own, half, quarter = (f"MaskDiT, {ratio} % masked" for ratio in (0, 50, 75))
        lines += [
            f"50 % masked against own unmasked step   {outcome.ratio(own, half):.2f}x",
            f"50 % masked against the plain DiT       {outcome.ratio('DiT', half):.2f}x",
            f"75 % masked against own unmasked step   {outcome.ratio(own, quarter):.2f}x",
        ]
    return "\n".join(lines)

"""`maskdit bench tokens`: generators of a few tokens beside diffusion and beside each other, measured and counted.

Measured is a pair small enough for a CPU, of one width and depth, with random weights: whole sampling runs as single
programs that take turns, in CPU-seconds. Counted are FLOPs at the papers' sizes, by the configs that ship and
without running anything; see `maskdit.performance.costs`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit import config as configs
from maskdit.contracts import Cond, Latents, bind, example_cond, example_input
from maskdit.draw import Draw
from maskdit.networks.dit import DiT, size
from maskdit.networks.maskgit import MaskGIT
from maskdit.performance.costs import decode_flops, generator_flops, told
from maskdit.performance.timing import MatrixProducts, Spread, alternate, cpu_seconds
from maskdit.processes.ddpm import DDPM
from maskdit.processes.masked import Masked
from maskdit.samplers.ancestral import Ancestral
from maskdit.samplers.cost import sampling_macs
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import walk
from maskdit.samplers.tokens import Confidence
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.titok import SIZES, TiTok
from maskdit.tokenizers.vae import VAE
from maskdit.training.mesh import unboxed
from maskdit.training.run import Run
from maskdit.training.xla import own_options

NAME, DECODED = "tokens", ", decoded"
RATIO, SHARE, CACHED = 45.0, 0.60, 80.0
"""The least ratio of the measured generators; the share of the matrix-product rate that the slower one must reach for
that ratio to mean something; the least ratio that a memory of keys and values must bring."""


@dataclasses.dataclass(frozen=True)
class System:
    """A generator with random weights.

    Attributes:
      name: as the table says it.
      network, process, sampler, guidance, tokenizer: its parts.
      repeats: sampling runs in a turn.
    """

    name: str
    network: Any
    process: Any
    sampler: Any
    guidance: Any
    tokenizer: Any
    repeats: int = 1

    @property
    def flops(self) -> float:
        """Of the network in sampling one image."""
        return 2.0 * sampling_macs(self.sampler, self.process, self.network, self.guidance)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: a diffusion model and a masked generator, that many images at once."""

    diffusion: System
    masked: System
    batch: int = 4


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: what one image takes in two ways.

    Attributes:
      slow, fast: the two ways in words.
      unit: of the two costs: `CPU-s` or `FLOP`.
      costs: of the slow and the fast one.
      ratio: how many times more the slow one takes; the least and the most of the rounds, where it was measured.
      must: the ratio that there must be at least; None where nothing is asked for.
    """

    slow: str
    fast: str
    unit: str
    costs: tuple[float, float]
    ratio: Spread
    must: float | None = None

    @classmethod
    def counted(cls, slow: str, fast: str, costs: tuple[float, float], must: float | None = None) -> "Row":
        """A row of FLOPs."""
        ratio = costs[0] / costs[1]
        return cls(slow, fast, "FLOP", costs, Spread(ratio, ratio, ratio), must)


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
      rows: of the table.
      share: of the matrix-product rate that the diffusion model's network reached over its sampling run.
      rate: FLOP per CPU-second of matrix products.
    """

    rows: tuple[Row, ...]
    share: float
    rate: Spread


def usual() -> Case:
    """DiT-S/2 in 32 x 32 x 4 latents with 50 guided steps, and a MaskGIT of its width and depth on 32 tokens."""
    classes = {"label": 1000}
    dit = DiT(input_size=32, channels=4, classes=classes, learned_variance=True, **size("S/2"))
    maskgit = MaskGIT(vocabulary=4096, grid=(32,), width=384, depth=12, heads=6, hidden=1536, classes=classes)
    pixel = MaskGITVQGAN(quantize=VQ(codes=1024, channels=256), channels=(128, 128, 256, 256, 512), latent_channels=256)
    small: dict[str, Any] = {"encoder": SIZES["small"], "decoder": SIZES["small"], "tokens": 32, "channels": 12}
    titok = TiTok(quantize=VQ(codes=4096, channels=12, l2=True), legacy=True, pixel=pixel, **small)
    ddpm = DDPM(learned_variance=True)
    guidance = ClassifierFree(4.0, channels=3)
    return Case(
        System("DiT-S/2, 50 guided steps", dit, ddpm, Ancestral(50), guidance, VAE()),
        System(
            "MaskGIT 384 x 12, 32 tokens, 8 steps",
            maskgit,
            Masked(),
            Confidence(steps=8),
            ClassifierFree(5.5, schedule="linear"),
            titok,
            repeats=8,
        ),
    )


def measure(rounds: int, case: Case | None = None) -> Found:
    """Measures the pair and counts it.

    Args:
      rounds: turns of each program.
      case: what is measured; `usual()` by default.
    """
    case = case or usual()
    slow, fast = case.diffusion, case.masked
    programs = {
        f"{system.name}{part}": (make(system, case.batch), repeats)
        for system in (slow, fast)
        for part, make, repeats in (("", _sampling, system.repeats), (DECODED, _decoding, 1))
    }
    for program, _ in programs.values():
        jax.block_until_ready([program(), program()])  # compiles, and lets the allocator find its size
    product = MatrixProducts()
    rates = [product.measure().cpu]

    def turn(program: Callable[[], Any], repeats: int) -> float:
        begin = cpu_seconds()
        for _ in range(repeats):
            jax.block_until_ready(program())
        seconds = (cpu_seconds() - begin) / repeats / case.batch
        rates.append(product.measure().cpu)
        return seconds

    turns = {name: functools.partial(turn, *program) for name, program in programs.items()}
    seconds = {name: np.array(found) for name, found in alternate(turns, rounds).items()}
    rate = Spread.of(rates)
    whole = [seconds[system.name] + seconds[f"{system.name}{DECODED}"] for system in (slow, fast)]
    rows = (
        _measured(slow.name, fast.name, seconds[slow.name], seconds[fast.name], RATIO),
        _measured(f"{slow.name}{DECODED}", f"{fast.name}{DECODED}", *whole),
        Row.counted(slow.name, fast.name, (slow.flops, fast.flops)),
    )
    return Found(rows, slow.flops / float(np.median(seconds[slow.name])) / rate.median, rate)


def counted() -> tuple[Row, ...]:
    """FLOPs of an image at the papers' sizes, of configs that ship; nothing is run."""
    dit, titok, enat, rar = (
        configs.build(configs.load(name))
        for name in (
            "dit_imagenet256:XL/2",
            "maskgit_imagenet256:titok-L-32",
            "enat_imagenet256:L",
            "rar_imagenet256:B",
        )
    )
    slow, fast = "DiT-XL/2, 250 guided steps", "TiTok-L-32, 8 steps"
    alone = tuple(generator_flops(run, run.task) for run in (dit, titok))
    whole = tuple(cost + decode_flops(run.task) for cost, run in zip(alone, (dit, titok), strict=True))
    padded = _with(rar, cache=False)
    return (
        Row.counted(slow, fast, (alone[0], alone[1])),
        Row.counted(f"{slow}{DECODED}", f"{fast}{DECODED}", (whole[0], whole[1])),
        *_enat(enat),
        Row.counted(
            "RAR-B, 256 tokens, padded sequence for each",
            "the same with a memory",
            (generator_flops(padded, padded.task), generator_flops(rar, rar.task)),
            CACHED,
        ),
    )


def table(rows: tuple[Row, ...], found: Found | None = None) -> str:
    """The rows as lines of text, below what matrix products reached where the pair was measured."""
    cells = [("one image", "against", "", "", "ratio", "")]
    for row in rows:
        slow, fast = (told(cost) if row.unit == "FLOP" else f"{cost:.3f} {row.unit}" for cost in row.costs)
        measured = row.ratio.most > row.ratio.least
        ratio = f"{row.ratio.median:.3g}x" + (f" ({row.ratio.least:.3g} to {row.ratio.most:.3g})" if measured else "")
        cells.append((row.slow, row.fast, slow, fast, ratio, _verdict(row)))
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    lines = ["  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[5]]).rstrip() for row in cells]
    if found is not None:
        rate = found.rate
        verdict = "pass" if found.share >= SHARE else "MISS"
        lines += [
            f"the diffusion network reaches {found.share:.0%} of the rate of float32 matrix products, >= {SHARE:.0%} "
            f"{verdict}: {rate.median / 1e9:.0f} GFLOP per CPU-second, {rate.least / 1e9:.0f} to {rate.most / 1e9:.0f}"
        ]
    return "\n".join(lines)


def _verdict(row: Row) -> str:
    if row.must is None:
        return ""
    return f">= {row.must:g}x {'pass' if row.ratio.median >= row.must else 'MISS'}"


def _measured(slow: str, fast: str, first: Any, second: Any, must: float | None = None) -> Row:
    costs = float(np.median(first)), float(np.median(second))
    return Row(slow, fast, "CPU-s", costs, Spread.of(list(first / second)), must)


def _enat(run: Run) -> tuple[Row, Row]:
    """ENAT with and without its memory, against a plain masked generator of its width and number of blocks."""
    network = run.task.network
    plain = MaskGIT(
        vocabulary=network.vocabulary,
        grid=network.grid,
        width=network.width,
        depth=network.depth + network.decoder_depth,
        heads=network.heads,
        hidden=int(network.width * network.mlp_ratio),
        classes=network.classes,
    )
    uncounted = _with(run, counted=False, reuse=False)
    task = dataclasses.replace(run.task, network=plain, process=dataclasses.replace(run.task.process, counts=None))
    name = f"MaskGIT {plain.width} x {plain.depth}, {plain.layout.tokens} tokens, {run.sampler.steps} steps"
    cost = generator_flops(uncounted, task)
    alone = _with(run, reuse=False)
    return (
        Row.counted(name, "ENAT-L without its memory", (cost, generator_flops(alone, run.task))),
        Row.counted(name, "ENAT-L", (cost, generator_flops(run, run.task))),
    )


def _with(run: Run, **settings: Any) -> Run:
    """A run with other settings of its sampler."""
    return dataclasses.replace(run, sampler=dataclasses.replace(run.sampler, **settings))


def _sampling(system: System, batch: int) -> Callable[[], Any]:
    """The whole sampling run of a system as one program, with its parameters."""
    network, layout = system.network, system.network.layout
    cond = example_cond(network, batch)
    made = jax.jit(
        lambda: network.init(jax.random.key(0), example_input(layout), jnp.ones((1,)), example_cond(network))
    )
    params = unboxed(made())["params"]

    @functools.partial(jax.jit, compiler_options=own_options())
    def program(params: Any, cond: Cond) -> Any:
        draw = Draw(jax.random.key(0)).at(jnp.arange(batch))
        predict = bind(network, params)
        shape = (batch, *layout.shape)
        return walk(system.process, system.sampler, predict, draw, shape, cond, guidance=system.guidance)[0].x

    return functools.partial(program, params, cond)


def _decoding(system: System, batch: int) -> Callable[[], Any]:
    """The decoder of a system, on latents or ids of zeros, with its parameters."""
    z = example_input(system.network.layout, batch)
    latents = Latents(values=z) if system.network.layout.vocabulary is None else Latents(ids=z)
    made = jax.jit(lambda: system.tokenizer.init(jax.random.key(0), latents, method="decode"))
    program = jax.jit(
        lambda variables, latents: system.tokenizer.apply(variables, latents, method="decode"),
        compiler_options=own_options(),
    )
    return functools.partial(program, unboxed(made()), latents)

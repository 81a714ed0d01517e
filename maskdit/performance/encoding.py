"""`maskdit bench encode`: images per second of encoding a data set, beside the tokenizer's bare forward pass.

Both encode the same number of random images in batches. The bare pass has them on the device; encoding reads them from
a source, brings the moments back and writes them to shards. They take turns.
"""

import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.data.encoding import Job, write_records
from maskdit.data.latent_shards import Shards, ShardWriter
from maskdit.data.latents import Stream
from maskdit.data.loader import Loader
from maskdit.performance.subject import Synthetic
from maskdit.performance.timing import Spread, alternate
from maskdit.tokenizers.streams import Encoder, stored, stored_shape
from maskdit.tokenizers.vae import VAE
from maskdit.training import placement
from maskdit.training.mesh import MeshShape, applied, batch_sharding, replicated, unboxed

NAME = "encode"
GOAL = 0.9
"""The share of the bare pass's rate that encoding should reach."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is encoded.

    Attributes:
      tokenizer: the module.
      size: side of the images.
      batch: images at once.
      batches: of a turn.
    """

    tokenizer: Any = VAE()
    size: int = 64
    batch: int = 32
    batches: int = 4


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
      what: the tokenizer and its images.
      bare, encode: images per second.
      ratio: of the two rates in each round.
      share: median of `ratio`.
    """

    what: str
    bare: Spread
    encode: Spread
    ratio: Spread
    share: float


def measure(rounds: int, scratch: str | None = None, case: Case | None = None) -> Row:
    """Lets both take turns; nothing is left behind.

    Args:
      rounds: turns of each.
      scratch: folder for the shards; the system's temporary folder by default.
      case: what is encoded; the VAE of Stable Diffusion with random weights, 64 pixels, batches of 32, by default.
    """
    case = case or Case()
    devices = MeshShape().make(jax.local_devices())
    count = case.batch * case.batches
    image = jnp.zeros((1, case.size, case.size, 3))
    made = jax.jit(lambda key: unboxed(case.tokenizer.init(key, image, method="encode")))(jax.random.key(0))
    variables = placement.spread(made, replicated(devices))
    name, shape = stored_shape(case.tokenizer, variables, case.size)
    loader = Loader(Synthetic(case.size, {}, count=count), size=case.size, flip=False)
    encoder = Encoder(case.tokenizer, variables, devices, "float16", flips=False)

    def encode() -> float:
        with tempfile.TemporaryDirectory(prefix="maskdit-encode-", dir=scratch) as folder:
            shards = Shards(pathlib.Path(folder), count, count)
            job = Job(loader, {name: Stream(shape, "float16")}, shards, False, False, case.batch)
            begin = time.perf_counter()
            with ShardWriter(shards) as writer:
                write_records(job, encoder, [0], writer, lambda _: None)
            return time.perf_counter() - begin

    forward = jax.jit(lambda v, x: stored(case.tokenizer, case.tokenizer.apply(v, x, method="encode"))[1])
    pixels = np.random.default_rng(0).uniform(-1, 1, (case.batch, case.size, case.size, 3)).astype(np.float32)
    resident = placement.spread(pixels, batch_sharding(devices))

    def bare() -> float:
        with applied(devices):
            begin = time.perf_counter()
            jax.block_until_ready([forward(variables, resident) for _ in range(case.batches)])
            return time.perf_counter() - begin

    turns = {"bare": bare, NAME: encode}
    with applied(devices):
        jax.block_until_ready((forward(variables, resident), encoder(np.zeros(pixels.shape, np.uint8))))  # compiles
    seconds = alternate(turns, rounds)
    ratio = Spread.of([b / e for b, e in zip(seconds["bare"], seconds[NAME], strict=True)])
    bare_rate, encode_rate = (Spread.of(seconds[turn]).inverse(count) for turn in turns)
    what = f"{type(case.tokenizer).__name__}, {case.size} pixels, batch {case.batch}"
    return Row(what, bare_rate, encode_rate, ratio, ratio.median)


def table(row: Row) -> str:
    """The row as lines of text."""
    lines = [f"{row.what}, images/s"]
    for name, rate in (("bare forward", row.bare), ("encode", row.encode)):
        lines.append(f"{name:<14}{rate.median:>9.1f}  {rate.least:.1f} to {rate.most:.1f}")
    verdict = "pass" if row.share >= GOAL else "MISS"
    lines.append(f"{'ratio':<14}{row.share:>9.3f}  {row.ratio.least:.3f} to {row.ratio.most:.3f}  >= {GOAL} {verdict}")
    return "\n".join(lines)

"""`maskdit bench import`: seconds and memory of bringing in a published file of full size.

The file has the names and shapes of the published one, in its authors' layout, and random numbers. Each import is a
process of its own, on the CPU, so that its peak of memory is its own; seconds count from its start.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from maskdit import config as configs
from maskdit import importing
from maskdit.interop import layouts, published, torch_save
from maskdit.interop.atomic import ending_on_sigterm
from maskdit.interop.tensors import Tensor
from maskdit.performance.subject import BenchError
from maskdit.performance.timing import Spread

NAME = "import"
GOAL = 1.3
"""The share of the parameters' bytes that the peak of memory should stay below."""
_MARGIN = 256 << 20  # bytes of disk besides the arrays


@dataclasses.dataclass(frozen=True)
class Case:
    """What is brought in.

    Attributes:
      name: of the published generator.
      vae: of its VAE.
      overrides, vae_overrides: entries of their configs to set, as pairs of a path and a text.
    """

    name: str = "dit-xl-2-256"
    vae: str = "sd-vae-ft-ema"
    overrides: tuple[tuple[str, str], ...] = ()
    vae_overrides: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
      file: the kind of file, `.pt` or `.safetensors`.
      parameters: bytes of all parameters, those of the VAE too.
      seconds: from the start of the command to its end.
      rate: bytes of the parameters per second.
      peak: most bytes of resident memory, of all rounds.
      before: bytes that were resident before any file was opened: Python and its libraries.
      share: `peak` over `parameters`.
      load: seconds of `maskdit.load` of the result.
    """

    file: str
    parameters: int
    seconds: Spread
    rate: float
    peak: int
    before: int
    share: float
    load: Spread


@dataclasses.dataclass(frozen=True)
class _Random:
    """A float32 tensor of numbers from -0.1 to 0.1, made when it is asked for; `maskdit.interop.tensors.Tensor`."""

    shape: tuple[int, ...]
    key: int
    dtype: np.dtype = np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.random.Generator(np.random.Philox(key=self.key)).random(self.shape, np.float32)
        array -= 0.5
        array *= 0.2
        return array if dtype is None else array.astype(dtype, copy=False)


def measure(rounds: int, scratch: str | None = None, case: Case | None = None) -> list[Row]:
    """Writes the files, and measures the import of each; nothing is left behind.

    Args:
      rounds: imports of each kind of file.
      scratch: folder for the files; the system's temporary folder by default.
      case: what is brought in; DiT-XL/2 with its VAE, 3 GB, by default.

    Raises:
      BenchError: where the folder is missing or the disk lacks room, and where an import fails.
    """
    case, root = case or Case(), scratch or tempfile.gettempdir()
    network, network_bytes = _published(case.name, case.overrides)
    vae, vae_bytes = _published(case.vae, case.vae_overrides)
    parameters = network_bytes + vae_bytes
    _check_room(root, 2 * parameters + _MARGIN)
    rows = []
    with ending_on_sigterm(), tempfile.TemporaryDirectory(prefix="maskdit-import-", dir=root) as folder:
        scene = pathlib.Path(folder)
        tokenizer = _imported_vae(scene, case, vae)
        overrides = [f"--config.{path}={text}" for path, text in (*case.overrides, ("task.tokenizer", tokenizer))]
        for kind, write in _WRITERS.items():
            file, out = scene / f"weights{kind}", scene / "out"
            print(f"{NAME}: writing {case.name} as {kind}, {file}", flush=True)
            write(file, network)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())  # what is still on its way to the disk would slow the import
            found = []
            for number in range(rounds):
                print(f"{NAME}: {kind}, {number + 1} of {rounds}", flush=True)
                found.append(_run([case.name, str(file), str(out), *overrides]))
                shutil.rmtree(out)
            file.unlink()
            rows.append(_row(kind, parameters, found))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as lines of text."""
    head = ("file", "parameters", "seconds", "min to max", "MB/s", "peak", f"share (< {GOAL})", "before", "load")
    cells = [head]
    for row in rows:
        cells.append(
            (
                row.file,
                f"{row.parameters / 1e6:,.0f} MB",
                f"{row.seconds.median:.1f}",
                f"{row.seconds.least:.1f} to {row.seconds.most:.1f}",
                f"{row.rate / 1e6:,.0f}",
                f"{row.peak / 1e6:,.0f} MB",
                f"{row.share:.2f} {'pass' if row.share < GOAL else 'MISS'}",
                f"{row.before / 1e6:,.0f} MB",
                f"{row.load.median:.1f} s",
            )
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )


def _row(kind: str, parameters: int, found: list[dict[str, Any]]) -> Row:
    seconds = Spread.of([one["seconds"] for one in found])
    peak = max(one["peak"] for one in found)
    return Row(
        file=kind,
        parameters=parameters,
        seconds=seconds,
        rate=parameters / seconds.median,
        peak=peak,
        before=max(one["before"] for one in found),
        share=peak / parameters,
        load=Spread.of([one["load"] for one in found]),
    )


def _published(name: str, overrides: tuple[tuple[str, str], ...]) -> tuple[dict[str, Tensor], int]:
    """A filled state dict of published weights in their authors' layout, and the bytes of our parameters."""
    config = published.ALIASES[name].config()
    for path, text in overrides:
        configs.override_text(config, path, text)
    module = configs.build(config.task.network if config.get("task") else config.tokenizer)
    shapes = layouts.parameter_shapes(module)
    # booleans without bytes stand for what is filled; what comes out as numbers is a table that the layout fixes
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), np.bool_), leaf.shape), shapes)
    state: dict[str, Tensor] = {}
    for key, (place, tensor) in enumerate(layouts.write(module, hollow).items()):
        state[place] = _Random(tensor.shape, key) if tensor.dtype == np.bool_ else tensor.astype(np.float32)
    return state, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _imported_vae(scene: pathlib.Path, case: Case, vae: Mapping[str, Tensor]) -> str:
    """The work directory of a filled VAE, for the configs of generators to name."""
    file, out = scene / "vae.safetensors", scene / "vae"
    _write_safetensors(file, vae)
    importing.import_weights(case.vae, str(file), str(out), overrides=case.vae_overrides)
    file.unlink()
    return str(out)


def _check_room(root: str, needed: int) -> None:
    if not os.path.isdir(root):
        raise BenchError(f"there is no folder {root}: --scratch takes one on a local disk")
    free = shutil.disk_usage(root).free
    if free < needed:
        raise BenchError(
            f"bench {NAME} needs {needed / 1e9:.1f} GB in {root} and {free / 1e9:.1f} GB are free: make room, or name "
            "a folder on another disk with --scratch"
        )


def _run(arguments: list[str]) -> dict[str, Any]:
    """What `maskdit.performance.one_import` finds."""
    done = subprocess.run(
        [sys.executable, "-m", "maskdit.performance.one_import", repr(time.time()), *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"the import failed: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write_safetensors(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes float32 tensors one after the other; the library's own writer wants all of them in memory."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * int(np.prod(tensor.shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, "<f4").reshape(-1).view(np.uint8).data)


_WRITERS: dict[str, Callable[[pathlib.Path, Mapping[str, Tensor]], None]] = {
    ".pt": torch_save.write,
    ".safetensors": _write_safetensors,
}

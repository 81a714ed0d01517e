"""Bytes of collectives of a DiT-XL/2 step on 8 devices, beside what the ways of cutting it should need.

A process of its own, for `maskdit bench --gates`: prints one line of JSON. Programs are compiled, nothing is run; a
CPU computes in float32, so numbers have 4 bytes in the formulas too.

Formulas, with P parameters: data parallel, one reduction of all gradients; parameters cut (FSDP), two gathers of all
weights and one scatter of all gradients; tensor parallel, four reductions of the tokens in each block.
"""

import collections
import json
import math
import sys

from maskdit import config as configs
from maskdit.performance import hlo, programs
from maskdit.training.mesh import MeshShape
from maskdit.training.precision import on_this_device
from maskdit.training.run import Run
from maskdit.training.step import compiled

ROWS = 32
"""Images on a device; in tensor parallel on all together."""
MESHES = {
    "FSDP 8": MeshShape(data=1, fsdp=8),
    "data parallel 8": MeshShape(data=8),
    "tensor parallel 8": MeshShape(data=1, tensor=8),
}
MUST = {"FSDP 8": 1.15, "data parallel 8": 1.25, "tensor parallel 8": 1.25}
_BYTES = 4


def formula(name: str, run: Run, parameters: int) -> int:
    """Bytes that a step should move, whole tensors, on a mesh of `MESHES`."""
    network = run.task.network
    counts = {
        "FSDP 8": 3 * parameters,
        "data parallel 8": parameters,
        "tensor parallel 8": 4 * network.depth * run.batch * network.layout.tokens * network.width,
    }
    return counts[name] * _BYTES


def measured(name: str, run: Run) -> tuple[dict[str, int], int]:
    """Bytes of the collectives of a run's step on latents by kind, and its number of parameters."""
    devices = MESHES[name].make()
    program = compiled(programs.training_steps(run, devices, latents=True)[0].lowered, devices)
    kinds: collections.Counter[str] = collections.Counter()
    for found in hlo.collectives(program.as_text() or ""):
        kinds[found.kind] += found.total
    return dict(kinds), sum(math.prod(shape) for _, shape, _ in programs.parameter_shardings(run, devices))


def main() -> None:
    """Measures all meshes."""
    rows = {}
    for name, must in MUST.items():
        batch = ROWS if name.startswith("tensor") else 8 * ROWS
        config = configs.load("dit_imagenet256:XL/2", {"batch": batch, "task.network.scan": True})
        run = configs.build(on_this_device(config))
        kinds, parameters = measured(name, run)
        rows[name] = {
            "formula": formula(name, run, parameters),
            "bytes": sum(kinds.values()),
            "kinds": kinds,
            "must": must,
        }
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()

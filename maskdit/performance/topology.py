"""TPU slices by name, without a TPU: what `maskdit describe --topology` compiles for.

The wheel `libtpu` (the extra `aot`) holds the real compiler and knows the slices.
"""

import dataclasses
from typing import Any

import jax
from jax.experimental import topologies

from maskdit.training.xla import compile_only


class TopologyError(ValueError):
    """A slice that does not exist, or no compiler to compile for it; the message says what there is."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generation of TPUs.

    Attributes:
      shapes: the slices that the compiler knows.
      clock: GHz, derived: peak operations per second over operations per cycle; no interface tells it.
      ici: bytes per second that a chip sends along one axis of its network, both ways together (scaling-book).
      options: the compiler's name for chips that are used as one device.
    """

    shapes: tuple[str, ...]
    clock: float
    ici: float
    options: dict[str, str] = dataclasses.field(default_factory=dict)


GENERATIONS: dict[str, Generation] = {
    # Without megacore a v4 chip is two devices of 15.25 GiB.
    "v4": Generation(
        ("1x1x1", "1x2x1", "2x2x1", "2x2x2", "2x2x4", "4x4x4"), 1.05, 9e10, {"chip_config_name": "megacore"}
    ),
    "v5e": Generation(("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"), 1.50, 9e10),
    "v5p": Generation(("1x1x1", "2x2x1", "2x2x2", "2x2x4", "4x4x4", "8x8x8"), 1.75, 1.8e11),
    "v6e": Generation(("1x1", "2x2", "2x4", "4x4", "8x8", "16x16", "16x32"), 1.75, 1.8e11),
    "tpu7x": Generation(("1x1x1", "2x2x1", "2x2x2", "4x4x4"), 2.20, 1.8e11),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPUs.

    Attributes:
      name: such as `v5e:4x4`.
      generation: its generation.
      devices: what meshes are made of; programs can be compiled for them, not run.
    """

    name: str
    generation: Generation
    devices: list[Any]

    @property
    def kind(self) -> str:
        """What jax calls one of its devices."""
        return str(self.devices[0].device_kind)


def topology(name: str) -> Topology:
    """The slice of a name such as `v5e:4x4`.

    Raises:
      TopologyError: where there is no such slice, or no TPU compiler.
    """
    generation, _, shape = name.partition(":")
    known = GENERATIONS.get(generation)
    if known is None or not shape:
        raise TopologyError(
            f"a topology is a generation ({', '.join(GENERATIONS)}) and a shape, such as v5e:4x4; got '{name}'"
        )
    if shape not in known.shapes:
        raise TopologyError(f"there is no topology {name}: {generation} has {', '.join(known.shapes)}")
    compile_only()
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **known.options)
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        missing = any(word in str(error).lower() for word in ("libtpu", "not installed", "unknown backend"))
        why = "it needs the TPU compiler: pip install 'maskdit[aot]'" if missing else str(error).splitlines()[0]
        raise TopologyError(f"cannot compile for {name}: {why}") from error
    return Topology(name, known, list(found.devices))

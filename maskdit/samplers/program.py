"""A whole sampling run with decoding as one jitted program."""

import functools
from typing import Any

import jax
from flax import struct

from maskdit.contracts import Array, Cond, Latents, PyTree, bind
from maskdit.draw import Draw
from maskdit.samplers.sampling import Known, walk
from maskdit.tokenizers.pixels import rounded
from maskdit.training.xla import own_options


@struct.dataclass
class Rows:
    """What a program takes for each image.

    Attributes:
      numbers: of the images in their seed, uint32 `[B]`.
      cond: the condition.
      known: what is kept of an image, where one is edited.
    """

    numbers: Array
    cond: Cond
    known: Known | None = None


def sampling_program(
    task: Any, sampler: Any, guidance: Any = None, weak: Any = None, *, fixed: int = 0, watch: bool = False
) -> Any:
    """The jitted program of a sampling run with decoding.

    Args:
      task: a `maskdit.tasks.generator.Generator`.
      sampler, guidance: settings.
      weak: the task of the network that the guidance needs, if any.
      fixed, watch: see `maskdit.samplers.sampling.walk`.

    Returns:
      `program(variables, seed, rows, weak_params=None)`: variables as a `GeneratorModel` has them, the seed uint32, and
      `Rows`; it gives images uint8 `[B, H, W, 3]`, with `watch` those of all steps, `[B, steps, H, W, 3]`, and whether
      the (last) ones were all finite before they were rounded, bool `[B]`.
    """
    weak_network = None if weak is None else weak.network
    fixed = fixed if getattr(sampler, "counted", False) else 0  # other samplers have one program for any number
    return _program(task.network, task.process, task.tokenizer, sampler, guidance, weak_network, fixed, watch)


@functools.cache
def _program(
    network: Any,
    process: Any,
    tokenizer: Any,
    sampler: Any,
    guidance: Any,
    weak_network: Any,
    fixed: int,
    watch: bool,
) -> Any:
    def decoded(variables: PyTree, z: Array, cond: Cond) -> tuple[Array, Array]:
        latents = Latents(values=z) if network.layout.vocabulary is None else Latents(ids=z)
        text = cond.text if cond.decoder_text is None else cond.decoder_text
        read = Cond(text=text) if getattr(tokenizer, "text", None) else None
        return rounded(tokenizer.apply(variables["frozen"]["tokenizer"], latents, read, method="decode"))

    @functools.partial(jax.jit, compiler_options=own_options())
    def program(variables: PyTree, seed: Array, rows: Rows, weak_params: PyTree = None) -> tuple[Array, Array]:
        predict = bind(network, variables["params"]["network"])
        weak = None if weak_network is None else bind(weak_network, weak_params)
        draw = Draw(jax.random.key(seed)).named("sample").at(rows.numbers)
        shape = (rows.numbers.shape[0], *network.layout.shape)
        state, seen = walk(
            process,
            sampler,
            predict,
            draw,
            shape,
            rows.cond,
            guidance=guidance,
            weak=weak,
            known=rows.known,
            fixed=fixed,
            watch=watch,
        )
        if seen is None:
            return decoded(variables, state.x, rows.cond)
        frames, whole = jax.lax.map(lambda z: decoded(variables, z, rows.cond), seen)
        return frames.swapaxes(0, 1), whole[-1]

    return program

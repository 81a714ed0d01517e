"""What a generator costs, by the formulas of networks; tokenizers are counted by XLA. Nothing is run or compiled."""

from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Cond, Latents, Layout, Plan
from maskdit.samplers.cost import sampling_macs
from maskdit.samplers.sampling import Stretch, guided_runs
from maskdit.training.mesh import unboxed
from maskdit.training.run import Run


def training_macs(task: Any, plan: Plan) -> float:
    """Multiply-adds of a forward pass of the trained network on one image, of which a training step takes three.

    Where tokens are hidden again for a pass of the averaged network, which has no backward pass, a third of that pass
    is added. 0 where a network has no formula.
    """
    network = getattr(task, "network", None)
    if network is None or not hasattr(network, "macs"):
        return 0.0
    if not hasattr(network, "layout"):
        return float(network.macs())
    if plan.masked is None:
        return float(network.macs(plan.keep))
    first = 0 if plan.hidden is None else network.macs(masked=plan.masked + plan.hidden)
    return float(network.macs(masked=plan.masked, fresh=plan.hidden) + first / 3)


def plan_name(plan: Plan) -> str:
    """What a plan says of tokens, such as `128 tokens kept`; empty where it says nothing."""
    told = [(plan.keep, "tokens kept"), (plan.masked, "tokens masked"), (plan.hidden, "hidden again")]
    return ", ".join(f"{count} {name}" for count, name in told if count is not None)


def sampling_runs(run: Run, task: Any) -> tuple[Stretch, ...]:
    """The stretches of a run's sampler, with guidance on or off."""
    process = task.process.respace(run.sampler.grid(task.process, task.layout))
    return guided_runs(run.sampler, process, task.layout, run.guidance)


def generator_flops(run: Run, task: Any) -> float:
    """FLOPs of a run's network in sampling one image."""
    return 2.0 * sampling_macs(run.sampler, task.process, task.network, run.guidance)


def image_side(tokenizer: Any, layout: Layout) -> int:
    """Side of the images that a generator with this layout makes, in pixels."""
    return tokenizer.latent.size or layout.grid[0] * layout.patch * tokenizer.latent.downsample


def decode_flops(task: Any) -> float:
    """FLOPs of decoding one image of a generator, as XLA counts them."""
    tokenizer, layout = task.tokenizer, task.network.layout
    if getattr(tokenizer, "scan", False):
        tokenizer = tokenizer.clone(scan=False)  # XLA counts what a loop repeats once
    side = image_side(tokenizer, layout)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = unboxed(jax.eval_shape(tokenizer.init, jax.random.key(0), image))
    given = jax.ShapeDtypeStruct((1, *layout.shape), jnp.float32 if layout.vocabulary is None else jnp.int32)
    text = getattr(tokenizer, "text", None)
    read = None if text is None else jax.ShapeDtypeStruct((1, *text), jnp.float32)

    def decode(variables: Any, z: Any, read: Any) -> Any:
        latents = Latents(values=z) if layout.vocabulary is None else Latents(ids=z)
        return tokenizer.apply(variables, latents, Cond(text=read), method="decode")

    return lowered_flops(jax.jit(decode).lower(variables, given, read))


def lowered_flops(lowered: Any) -> float:
    """FLOPs of a program, as XLA counts them."""
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def told(flops: float) -> str:
    """A number of FLOPs with its unit."""
    for unit in ("", "k", "M", "G"):
        if flops < 1000:
            return f"{flops:.4g} {unit}FLOP"
        flops /= 1000
    return f"{flops:.4g} TFLOP"

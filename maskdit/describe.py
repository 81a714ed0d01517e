"""`maskdit describe`: what a config costs, without running it, and what it needs on a slice of TPUs.

FLOPs count a multiply-add as two and follow from the network's formula (`macs`); a training step is three forward
passes, recomputation not counted. A step of sampling makes one pass, with guidance two; where a network is told how
many tokens are masked, or keeps a memory, each step has a cost of its own. Tokenizers are counted by XLA. For a slice,
the programs are compiled ahead of time by the TPU compiler, on any machine.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.contracts import Cond, Layout
from maskdit.performance import costs, slices
from maskdit.performance.topology import topology
from maskdit.samplers.sampling import network_calls
from maskdit.tasks import task as tasks
from maskdit.training.mesh import unboxed
from maskdit.training.run import Run
from maskdit.training.step import create

SHOWN = 6
"""Training programs that are listed; where there are more, and masks are counted, the mean of the steps is told."""


def describe(config: ConfigDict, trust: Iterable[str] = ()) -> str:
    """A table of a config's parameters, tokens, FLOPs per image and bytes of state.

    Args:
      config: a config whose top level is a `maskdit.training.run.Run`.
      trust: packages besides `maskdit` whose classes the config may name.
    """
    run: Run = configs.build(config, trust)
    task = dataclasses.replace(run.task, horizon=run.horizon or run.steps)
    told = (
        [*_plan_rows(task, run), *_sampling_rows(task, run)] if hasattr(task, "network") else _tokenizer_rows(task, run)
    )
    rows = [*_state_rows(task, run), *told]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def describe_slice(
    config: ConfigDict,
    name: str,
    trust: Iterable[str] = (),
    *,
    latents: bool = False,
    only: str | None = None,
    samples: int = 4,
    sweep: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[str]:
    """What a config's training steps and sampler need on a slice of TPUs, part by part: compiling takes minutes.

    Args:
      config: a config whose top level is a `maskdit.training.run.Run`.
      name: of the slice, such as `v5e:4x4`.
      trust: packages besides `maskdit` whose classes the config may name.
      latents: whether training takes latents that were encoded beforehand, without the tokenizer.
      only: `training` or `sampling`, for one kind of program.
      samples: images that the sampler makes at once on each chip.
      sweep: where given, combinations are tried instead; see `maskdit.performance.slices.sweep`.

    Raises:
      TopologyError, ValueError: for a slice that does not exist, a mesh or batch that does not divide.
    """
    place = topology(name)
    if sweep is not None:
        yield from slices.sweep(config, place, latents, tuple(trust), sweep)
    else:
        yield from slices.describe_on(configs.build(config, trust), place, latents, only, samples)


def describe_all(
    name: str,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    latents: bool = False,
    only: str | None = None,
    samples: int = 4,
) -> Iterator[str]:
    """Rows of a table: every config that ships, on a slice of TPUs.

    Args:
      name: of the slice.
      overrides: path and text of entries to set in every config.
      latents, only, samples: see `describe_slice`.
    """
    place = topology(name)
    yield slices.header(place)
    for entry in configs.names():
        config = configs.load(entry)
        for path, value in overrides:
            configs.override_text(config, path, value)
        yield from slices.rows(entry, configs.build(config), place, latents, only, samples)


def _state_rows(task: Any, run: Run) -> list[tuple[str, str]]:
    size = run.data.size
    batch = {
        "image": jax.ShapeDtypeStruct((run.batch, size, size, 3), jnp.uint8),
        "row": jax.ShapeDtypeStruct((run.batch,), jnp.int32),
    }
    if text := getattr(getattr(task, "tokenizer", None), "text", None):
        batch["text"] = jax.ShapeDtypeStruct((run.batch, *text), jnp.float16)
    state = unboxed(jax.eval_shape(functools.partial(create, task, run.ema, batch), jax.random.key(0)))
    rows = [("parameters", f"{_count(tree):,}  {name}") for name, tree in state.params.items()]
    parts = {"parameters": state.params, "averages": state.ema, "optimizer": state.opt, "task": state.task}
    listed = ", ".join(f"{name} {_bytes(tree)}" for name, tree in parts.items() if jax.tree.leaves(tree))
    return [*rows, ("state", f"{_bytes(state)}: {listed}")]


def _plan_rows(task: Any, run: Run) -> list[tuple[str, str]]:
    network = task.network
    rows: list[tuple[str, str]] = []
    if not hasattr(network, "macs"):
        return rows
    if hasattr(network, "layout"):
        rows.append(("tokens", _tokens(network.layout)))
    seen: dict[str, tuple[int, float]] = {}
    plans = tasks.plans(task, run.steps)
    for (plan, _), first in plans.items():
        seen.setdefault(costs.plan_name(plan) or "all tokens", (first, 6 * costs.training_macs(task, plan)))
    if len(seen) > SHOWN and any(plan.masked for plan, _ in plans):
        steps = range(0, run.steps, max(run.steps // 1000, 1))
        mean = sum(6 * costs.training_macs(task, task.plan(step)) for step in steps) / len(steps)
        least, most = (edge(flops for _, flops in seen.values()) for edge in (min, max))
        what = f"the mean of {len(seen)} programs, {costs.told(least)} to {costs.told(most)}"
        return [*rows, ("training step", f"{costs.told(mean)} per image, {what}")]
    for name, (first, flops) in seen.items():
        rows.append(("training step", f"{costs.told(flops)} per image, {name}, from step {first}"))
    return rows


def _tokens(layout: Layout) -> str:
    if layout.vocabulary is None:
        return f"{layout.tokens} of {layout.patch} x {layout.patch}"
    shape = f" ({' x '.join(map(str, layout.grid))})" if len(layout.grid) > 1 else ""
    bits = layout.tokens * math.log2(layout.vocabulary)
    return f"{layout.tokens}{shape} of {layout.vocabulary:,} codes for an image: {bits:,.0f} bits"


def _sampling_rows(task: Any, run: Run) -> list[tuple[str, str]]:
    if run.sampler is None or not hasattr(task, "process") or not hasattr(task.network, "macs"):
        return []
    stretches = costs.sampling_runs(run, task)
    steps = sum(part.stop - part.start for part in stretches)
    guided = sum(part.stop - part.start for part in stretches if part.guided)
    calls = network_calls(run.sampler, task.process, task.layout, run.guidance)
    network, decode = costs.generator_flops(run, task), costs.decode_flops(task)
    mean = "" if network == 2 * calls * task.network.macs() else f", the mean of {calls}"
    return [
        ("forward pass", f"{costs.told(network / calls)} per image{mean}"),
        ("steps", f"{steps}, {guided or 'none'} of them guided"),
        ("sampling", f"{costs.told(network + decode)} per image: {calls} passes and {costs.told(decode)} to decode"),
    ]


def _tokenizer_rows(task: Any, run: Run) -> list[tuple[str, str]]:
    """What an image takes as a tokenizer that is trained codes it, and FLOPs of both ways, as XLA counts them."""
    tokenizer, size = task.tokenizer, run.data.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    text = getattr(tokenizer, "text", None)
    cond = Cond() if text is None else Cond(text=jax.ShapeDtypeStruct((1, *text), jnp.float32))  # type: ignore[arg-type]
    variables = unboxed(jax.eval_shape(tokenizer.init, jax.random.key(0), image, cond))

    def call(method: str) -> Any:
        return jax.jit(functools.partial(tokenizer.apply, method=method))

    latents = jax.eval_shape(call("encode"), variables, image, cond)
    back = "decode" if getattr(task, "proxy", None) is None else "logits"
    encode = costs.lowered_flops(call("encode").lower(variables, image, cond))
    decode = costs.lowered_flops(call(back).lower(variables, latents, cond))
    if latents.ids is None:
        floats = latents.values.size
        coded = f"{floats // latents.values.shape[-1]} of {latents.values.shape[-1]} floats for an image"
    else:
        count, codes = latents.ids.size, tokenizer.latent.vocabulary
        coded = f"{count} of {codes:,} codes for an image: {count * math.log2(codes):,.0f} bits"
    return [
        ("tokens", coded),
        ("encode", f"{costs.told(encode)} per image"),
        (back, f"{costs.told(decode)} per image"),
        ("training step", f"{costs.told(3 * (encode + decode))} per image, without the networks that judge images"),
    ]


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> str:
    size = float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"

"""`maskdit describe`: what a config costs, without running it, and what it needs on a slice of TPUs.

FLOPs count a multiply-add as two and follow from the network's formula (`macs`); a training step is three forward
passes, recomputation not counted. The tokenizer's are counted by XLA. For a slice, the programs are compiled ahead of
time by the TPU compiler, on any machine.
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
from maskdit.contracts import Cond, Latents
from maskdit.performance import slices
from maskdit.performance.topology import topology
from maskdit.samplers.sampling import network_calls
from maskdit.tasks import task as tasks
from maskdit.training.mesh import unboxed
from maskdit.training.run import Run
from maskdit.training.step import create


def describe(config: ConfigDict, trust: Iterable[str] = ()) -> str:
    """A table of a config's parameters, tokens, FLOPs per image and bytes of state.

    Args:
      config: a config whose top level is a `maskdit.training.run.Run`.
      trust: packages besides `maskdit` whose classes the config may name.
    """
    run: Run = configs.build(config, trust)
    task = dataclasses.replace(run.task, horizon=run.horizon or run.steps)
    costs = (
        [*_plan_rows(task, run), *_sampling_rows(task, run)] if hasattr(task, "network") else _tokenizer_rows(task, run)
    )
    rows = [*_state_rows(task, run), *costs]
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
        rows.append(("tokens", f"{network.layout.tokens} of {network.layout.patch} x {network.layout.patch}"))
    seen: dict[int | None, int] = {}
    for (plan, _), first in tasks.plans(task, run.steps).items():
        seen.setdefault(plan.keep, first)
    for keep, first in seen.items():
        name = "all tokens" if keep is None else f"{keep} tokens kept"
        flops = 6 * network.macs(keep) if hasattr(network, "layout") else 6 * network.macs()
        rows.append(("training step", f"{_flops(flops)} per image, {name}, from step {first}"))
    return rows


def _sampling_rows(task: Any, run: Run) -> list[tuple[str, str]]:
    if run.sampler is None or not hasattr(task, "process") or not hasattr(task.network, "macs"):
        return []
    calls = network_calls(run.sampler, task.process, run.guidance)
    forward = 2 * task.network.macs()
    decode = _decode_flops(task)
    total = calls * forward + decode
    return [
        ("forward pass", f"{_flops(forward)} per image"),
        ("sampling", f"{_flops(total)} per image: {calls} passes and {_flops(decode)} to decode"),
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
    encode = _counted(call("encode").lower(variables, image, cond))
    decode = _counted(call(back).lower(variables, latents, cond))
    if latents.ids is None:
        floats = latents.values.size
        coded = f"{floats // latents.values.shape[-1]} of {latents.values.shape[-1]} floats for an image"
    else:
        count, codes = latents.ids.size, tokenizer.latent.vocabulary
        coded = f"{count} of {codes:,} codes for an image: {count * math.log2(codes):,.0f} bits"
    return [
        ("tokens", coded),
        ("encode", f"{_flops(encode)} per image"),
        (back, f"{_flops(decode)} per image"),
        ("training step", f"{_flops(3 * (encode + decode))} per image, without the networks that judge images"),
    ]


def _counted(lowered: Any) -> float:
    """FLOPs of a program, as XLA counts them."""
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def _decode_flops(task: Any) -> float:
    """FLOPs of decoding one image, as XLA counts them."""
    shape = task.network.layout.shape
    side = shape[0] * task.tokenizer.latent.downsample
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(task.tokenizer.init, jax.random.key(0), image)
    decode = jax.jit(lambda variables, z: task.tokenizer.apply(variables, Latents(values=z), method="decode"))
    return _counted(decode.lower(unboxed(variables), jax.ShapeDtypeStruct((1, *shape), jnp.float32)))


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> str:
    size = float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _flops(flops: float) -> str:
    for unit in ("", "k", "M", "G"):
        if flops < 1000:
            return f"{flops:.4g} {unit}FLOP"
        flops /= 1000
    return f"{flops:.4g} TFLOP"

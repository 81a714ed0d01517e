"""The programs of a config, traced from shapes alone: no data are read and no weights are made.

They are the very programs that training and sampling run, so that what is compiled for a slice of TPUs here is what
runs there.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maskdit.contracts import Plan, PyTree
from maskdit.draw import Draw
from maskdit.layers.platform import compiling_for
from maskdit.tasks import task as tasks
from maskdit.tokenizers.pixels import Pixels
from maskdit.training import mesh, step
from maskdit.training.run import Run


@dataclasses.dataclass(frozen=True)
class Traced:
    """A program that can be compiled.

    Attributes:
      name: such as `training step, 128 tokens kept`.
      lowered: for `maskdit.training.step.compiled`.
      images: images of one run.
      macs: multiply-adds of the network's forward passes for one image, by its formula; 0 where it has none.
      passes: network passes of an image that the program makes, a training step counting three.
    """

    name: str
    lowered: Any
    images: int
    macs: float
    passes: int


def training_steps(run: Run, devices: Mesh, latents: bool = False) -> list[Traced]:
    """The training step of each plan of a run, on a mesh.

    Args:
      run: the run.
      devices: the mesh; its devices need not be this machine's.
      latents: whether the batch holds latents that were encoded beforehand, in place of images.

    Raises:
      ValueError: where the batch does not divide.
    """
    mesh.local_rows(devices, run.batch, run.microbatches)
    task = _task(run, latents)
    batch = _batch(run, task, devices, latents)
    state = step.abstract_state(task, run.ema, batch, devices)
    frozen, seed = _frozen(task, devices), _seed(devices)
    found = []
    for plan, groups in tasks.plans(task, run.steps):
        name = "training step" if plan.keep is None else f"training step, {plan.keep} tokens kept"
        if len(groups) < len(task.groups):
            name += f", of {' and '.join(groups)}"
        lowered = step.lower(
            state,
            frozen,
            batch,
            seed,
            task=task,
            plan=plan,
            groups=groups,
            microbatches=run.microbatches,
            devices=devices,
        )
        found.append(Traced(name, lowered, run.batch, macs(task, plan), 3))
    return found


def sampling(run: Run, devices: Mesh, images: int) -> Traced | None:
    """The program of a sampling run with decoding; None for a task that draws no images.

    Args:
      run: the run.
      devices: the mesh.
      images: samples made at once, over all devices.
    """
    from maskdit.model import sampling_program
    from maskdit.samplers.sampling import network_calls

    task = _task(run, latents=False)
    if run.sampler is None or not hasattr(task, "process"):
        return None
    batch = _batch(run, task, devices, latents=False)
    params = step.abstract_state(task, run.ema, batch, devices).params
    rows = mesh.batch_sharding(devices)
    arguments = (
        {"params": params, "frozen": _frozen(task, devices)},
        jax.ShapeDtypeStruct((), jnp.uint32, sharding=mesh.replicated(devices)),
        jax.ShapeDtypeStruct((images,), jnp.uint32, sharding=rows),
        {name: jax.ShapeDtypeStruct((images,), jnp.int32, sharding=rows) for name in task.network.classes},
    )
    with mesh.applied(devices), compiling_for(devices.devices.flat[0].platform):
        lowered = sampling_program(task, run.sampler, run.guidance).lower(*arguments)
    calls = network_calls(run.sampler, task.process, run.guidance)
    return Traced(f"sampling, {calls} network calls", lowered, images, macs(task, Plan()), calls)


def parameter_shardings(run: Run, devices: Mesh) -> list[tuple[str, tuple[int, ...], Any]]:
    """Path, shape and place on the mesh of every parameter."""
    task = _task(run, latents=False)
    params = step.abstract_state(task, (), _batch(run, task, devices, False), devices).params
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape, x.sharding.spec) for path, x in leaves]


def trained(task: Any) -> tuple[str, Any]:
    """Field and module of what a task trains: `network`, or that of a tokenizer's training, `tokenizer`."""
    name = "network" if hasattr(task, "network") else "tokenizer"
    return name, getattr(task, name)


def classes(task: Any) -> dict[str, int]:
    """Label name -> number of classes of what a task trains; tokenizers have no labels."""
    return dict(getattr(trained(task)[1], "classes", {}))


def _task(run: Run, latents: bool) -> Any:
    task = dataclasses.replace(run.task, horizon=run.horizon or run.steps)
    return dataclasses.replace(task, tokenizer=Pixels()) if latents and hasattr(task, "process") else task


def _batch(run: Run, task: Any, devices: Mesh, latents: bool) -> dict[str, Any]:
    rows = mesh.batch_sharding(devices)

    def struct(dtype: Any, *sides: int) -> Any:
        return jax.ShapeDtypeStruct((run.batch, *sides), dtype, sharding=rows)

    labels = {name: struct(jnp.int32) for name in classes(task)}
    text = getattr(getattr(task, "tokenizer", None), "text", None)
    if text is not None and not hasattr(task, "process"):
        labels["text"] = struct(jnp.float16, *text)
    if latents and hasattr(task, "process"):
        shown = {"image": struct(jnp.uint8, *task.layout.shape)}
    elif run.data.latents is not None:
        shown = {name: struct(dtype, *shape) for name, (shape, dtype) in run.data.records.arrays.items()}
    else:
        shown = {"image": struct(jnp.uint8, run.data.size, run.data.size, 3)}
    return {**shown, "row": struct(jnp.int32), **labels}


def _frozen(task: Any, devices: Mesh) -> PyTree:
    """Variables of the networks that are not trained, where the loop puts them."""
    if not hasattr(task, "process"):  # nothing is fitted to images then: shapes are known without them
        return mesh.abstract(jax.eval_shape(lambda: task.freeze(Draw(0), lambda: iter(()))), devices)
    tokenizer = task.tokenizer
    side = task.layout.shape[0] * tokenizer.latent.downsample if hasattr(task, "layout") else 8
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    made = {"tokenizer": jax.eval_shape(tokenizer.init, jax.random.key(0), image)}
    return mesh.abstract(made, devices)


def _seed(devices: Mesh) -> Any:
    return jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=mesh.replicated(devices))


def macs(task: Any, plan: Plan) -> float:
    """Multiply-adds of one image's forward pass through a task's network, by its formula; 0 where it has none."""
    network = getattr(task, "network", None)
    if network is None or not hasattr(network, "macs"):
        return 0.0
    return float(network.macs(plan.keep) if hasattr(network, "layout") else network.macs())

"""The programs of a config, traced from shapes alone: no data are read and no weights are made.

They are the very programs that training and sampling run, so that what is compiled for a slice of TPUs here is what
runs there.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maskdit.contracts import PyTree, example_cond
from maskdit.draw import Draw
from maskdit.layers.platform import compiling_for
from maskdit.performance.costs import image_side, plan_name, training_macs
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
      macs: multiply-adds of the mean network pass for one image, by its formula; 0 where it has none.
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
        name = ", ".join(filter(None, ["training step", plan_name(plan)]))
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
        found.append(Traced(name, lowered, run.batch, training_macs(task, plan), 3))
    return found


def sampling(run: Run, devices: Mesh, images: int) -> Traced | None:
    """The program of a sampling run with decoding; None for a task that draws no images.

    Args:
      run: the run.
      devices: the mesh.
      images: samples made at once, over all devices.
    """
    from maskdit.samplers.cost import sampling_macs
    from maskdit.samplers.program import Rows, sampling_program
    from maskdit.samplers.sampling import network_calls

    task = _task(run, latents=False)
    if run.sampler is None or not hasattr(task, "process"):
        return None
    batch = _batch(run, task, devices, latents=False)
    params = step.abstract_state(task, run.ema, batch, devices).params
    rows = mesh.batch_sharding(devices)
    texts = {name: jax.ShapeDtypeStruct((images, *shape), jnp.float32) for name, shape in _texts(task.network).items()}
    cond = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows),
        jax.eval_shape(lambda: example_cond(task.network, images)).replace(**texts),
    )
    arguments = (
        {"params": params, "frozen": _frozen(task, devices)},
        jax.ShapeDtypeStruct((), jnp.uint32, sharding=mesh.replicated(devices)),
        Rows(jax.ShapeDtypeStruct((images,), jnp.uint32, sharding=rows), cond),  # type: ignore[arg-type]
    )
    with mesh.applied(devices), compiling_for(devices.devices.flat[0].platform):
        lowered = sampling_program(task, run.sampler, run.guidance).lower(*arguments)
    calls = network_calls(run.sampler, task.process, task.layout, run.guidance)
    macs = sampling_macs(run.sampler, task.process, task.network, run.guidance) if hasattr(task.network, "macs") else 0
    return Traced(f"sampling, {calls} network calls", lowered, images, macs / calls, calls)


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
    if hasattr(task, "process"):
        labels |= {name: struct(jnp.float16, *shape) for name, shape in _texts(task.network).items()}
    if latents and hasattr(task, "process"):
        shown = {"image": struct(jnp.uint8, *task.layout.shape)}
    elif run.data.latents is not None:
        shown = {name: struct(dtype, *shape) for name, (shape, dtype) in run.data.records.arrays.items()}
    else:
        shown = {"image": struct(jnp.uint8, run.data.size, run.data.size, 3)}
    return {**shown, "row": struct(jnp.int32), **labels}


def _texts(network: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of one example's text embeddings that a network takes."""
    text, pooled = getattr(network, "text_width", None), getattr(network, "pooled_width", None)
    found: dict[str, tuple[int, ...]] = {} if text is None else {"text": (network.text_tokens, text)}
    return found if pooled is None else {**found, "pooled": (pooled,)}


def _frozen(task: Any, devices: Mesh) -> PyTree:
    """Variables of the networks that are not trained, where the loop puts them."""
    if not hasattr(task, "process"):  # nothing is fitted to images then: shapes are known without them
        return mesh.abstract(jax.eval_shape(lambda: task.freeze(Draw(0), lambda: iter(()))), devices)
    tokenizer = task.tokenizer
    side = image_side(tokenizer, task.layout) if hasattr(task, "layout") else 8
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    made = {"tokenizer": jax.eval_shape(tokenizer.init, jax.random.key(0), image)}
    return mesh.abstract(made, devices)


def _seed(devices: Mesh) -> Any:
    return jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=mesh.replicated(devices))

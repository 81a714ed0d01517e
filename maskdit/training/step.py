"""One training step as a pure function: gradients over microbatches, update, average.

The state is donated, frozen networks are plain arguments. A step minimises sum(weight * value) / sum(weight) over the
global batch: sums over microbatches first, one division at the end.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from maskdit.contracts import Array, Loss, Plan, PyTree
from maskdit.draw import Draw
from maskdit.layers.platform import compiling_for
from maskdit.tasks.task import Context, Task
from maskdit.training import mesh
from maskdit.training.optim import merge
from maskdit.training.xla import compiler_options

Metrics = dict[str, tuple[Array, Array]]
"""Metric name -> (weighted sum, sum of weights): both add up over microbatches, steps and hosts."""


@struct.dataclass
class TrainState:
    """Everything that a run changes.

    Attributes:
      step: updates done.
      params: parameters by network name.
      ema: averages of the trained parameters, by the average's name.
      opt: optimizer state by group.
      task: the task's own state.
    """

    step: Array
    params: PyTree
    ema: dict[str, PyTree]
    opt: dict[str, Any]
    task: PyTree


def create(task: Task, decays: tuple[float, ...], batch: Mapping[str, Any], seed: Array) -> TrainState:
    """The state before step 0; to be traced, so that it is created sharded.

    Args:
      task: the task.
      decays: decays of the averages; the average's name is the decay as text.
      batch: a batch, or shapes and dtypes of one.
      seed: the run's key.
    """
    params, state = task.init(Draw(seed).named("init"), batch)
    selected = {name: group.select(params) for name, group in task.groups.items()}
    trained = functools.reduce(merge, selected.values())
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema={str(decay): jax.tree.map(jnp.copy, trained) for decay in decays},
        opt={name: group.transform(task.horizon).init(selected[name]) for name, group in task.groups.items()},
        task=state,
    )


def abstract_state(task: Task, decays: tuple[float, ...], batch: Mapping[str, Any], devices: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state that `create` makes, on a mesh."""
    return mesh.abstract(jax.eval_shape(functools.partial(create, task, decays, batch), jax.random.key(0)), devices)


def initial_state(
    task: Task, decays: tuple[float, ...], batch: Mapping[str, Any], seed: Array, like: TrainState
) -> TrainState:
    """The state before step 0, created where `like` says.

    Args:
      task, decays, batch, seed: as `create` takes them.
      like: what `abstract_state` gives for them.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(lambda key: mesh.unboxed(create(task, decays, batch, key)), out_shardings=placed)(seed)


def weighted(state: TrainState) -> PyTree:
    """What weights from elsewhere may replace: the parameters, and under `state` the codes that no gradient trains, but
    not how long they were idle.
    """
    codes = flatten_dict({"tokenizer": state.task.get("tokenizer", {})})
    codes = {path: leaf for path, leaf in codes.items() if path[-1] != "idle"}
    return {**state.params, "state": unflatten_dict(codes)} if codes else state.params


def with_weights(state: TrainState, leaves: Mapping[str, Array]) -> TrainState:
    """The state before step 0 with other weights, by their path in `weighted`; averages start from them too. The state
    is donated.
    """

    def put(state: TrainState, leaves: Mapping[str, Array]) -> TrainState:
        old = flatten_dict(weighted(state), sep="/")
        new = {path: leaves[path].astype(leaf.dtype) if path in leaves else leaf for path, leaf in old.items()}
        averages = {
            name: unflatten_dict({path: jnp.copy(new[path]) for path in flatten_dict(average, sep="/")}, sep="/")
            for name, average in state.ema.items()
        }
        params = unflatten_dict(new, sep="/")
        task = merge(state.task, params.pop("state", {}))
        return dataclasses.replace(state, params=params, ema=averages, task=task)

    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(put, out_shardings=placed, donate_argnums=0)(state, dict(leaves))


def lower(
    state: TrainState,
    frozen: PyTree,
    batch: Mapping[str, Any],
    seed: Any,
    *,
    task: Task,
    plan: Plan,
    groups: tuple[str, ...],
    microbatches: int,
    devices: Mesh,
) -> Any:
    """Traces the step's program for a mesh; `compiled` makes it run.

    Args:
      state, frozen, batch, seed: as `train_step` takes them, or their shapes, dtypes and shardings.
      task, plan, groups, microbatches: static.
      devices: the mesh, whose devices need not be this machine's.
    """
    step = functools.partial(train_step, task=task, plan=plan, groups=groups, microbatches=microbatches)
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(kept, mesh.replicated(devices)))
    with mesh.applied(devices), compiling_for(devices.devices.flat[0].platform):
        return jitted.lower(state, frozen, batch, seed)


def compiled(lowered: Any, devices: Mesh) -> Any:
    """Compiles a traced program with the options of the mesh's devices."""
    return lowered.compile(compiler_options=compiler_options(devices.devices.flat[0].platform))


def train_step(
    state: TrainState,
    frozen: PyTree,
    batch: dict[str, Array],
    seed: Array,
    *,
    task: Task,
    plan: Plan,
    groups: tuple[str, ...],
    microbatches: int,
) -> tuple[TrainState, Metrics]:
    """One step: each of the given groups is updated in turn; gives the next state and the step's metrics.

    Args:
      state: donated.
      frozen: variables of the networks that are not trained.
      batch: the global batch; `row` numbers its rows.
      seed: the run's key; the step and each row's number are folded into it.
      task, plan, groups, microbatches: static.
    """
    metrics: Metrics = {}
    outputs: dict[str, Any] = {}
    params, task_state, opt = state.params, state.task, dict(state.opt)
    draw = Draw(seed).named("train").at(state.step)

    def context(rows: tuple[dict[str, Array], dict[str, Any]], task_state: PyTree) -> Context:
        arrays, earlier = rows
        return Context(
            batch={name: array for name, array in arrays.items() if name != "row"},
            draw=draw.at(arrays["row"]),
            step=state.step,
            plan=plan,
            state=task_state,
            ema=state.ema,
            frozen=frozen,
            outputs=earlier,
        )

    for name in groups:
        group, others = task.groups[name], params
        selected = group.select(params)

        def objective(selected: Any, rows: Any, task_state: PyTree, name: str = name, others: Any = others) -> Any:
            loss, task_state = task.loss(name, merge(others, selected), context(rows, task_state))
            sums = loss_metrics(loss)
            return sums["loss"][0], (sums, task_state, jax.lax.stop_gradient(loss.prediction))

        grads, (sums, task_state, outputs[name]) = _accumulate(
            objective, selected, (batch, dict(outputs)), task_state, microbatches
        )
        grads = jax.tree.map(lambda grad, weight=sums["loss"][1]: grad / weight, grads)
        updates, opt[name] = group.transform(task.horizon).update(grads, opt[name], selected)
        params = merge(params, optax.apply_updates(selected, updates))
        number = (state.step - group.start) // group.every + 1
        sums["lr"] = (group.optimizer.schedule.rate(number, task.horizon), jnp.ones(()))
        sums["grad_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        metrics |= {f"{name}/{key}" if len(task.groups) > 1 else key: pair for key, pair in sums.items()}
    state = TrainState(step=state.step + 1, params=params, ema=_averages(state.ema, params), opt=opt, task=task_state)
    return state, metrics


def loss_metrics(loss: Loss) -> Metrics:
    """A loss as (weighted sum, sum of weights) pairs: `loss`, its named parts, and `loss/BIN` for each bin."""
    per_example = [loss.value, loss.weight, *loss.metrics.values(), *loss.bins.values()]
    chex.assert_rank(per_example, 1)
    chex.assert_equal_shape(per_example)
    weight, total = loss.weight, loss.weight.sum()
    value = (weight * loss.value).sum()
    sums = {"loss": (value + total * sum(loss.batch.values(), jnp.zeros(())), total)}
    sums |= {name: ((weight * part).sum(), total) for name, part in loss.metrics.items()}
    sums |= {name: (total * term, total) for name, term in loss.batch.items()}
    for name, member in loss.bins.items():
        sums[f"loss/{name}"] = ((member * weight * loss.value).sum(), (member * weight).sum())
    return sums


def _accumulate(objective: Any, selected: Any, rows: Any, task_state: PyTree, microbatches: int) -> tuple[Any, Any]:
    """Gradients and metrics summed over microbatches; the task's state goes through them in turn."""
    gradient = jax.grad(objective, has_aux=True)
    if microbatches == 1:
        return gradient(selected, rows, task_state)
    # microbatch j takes the rows j, j + n, ...: each device keeps the rows it has
    parts = jax.tree.map(lambda a: a.reshape(-1, microbatches, *a.shape[1:]).swapaxes(0, 1), rows)

    def body(carry: Any, rows: Any) -> tuple[Any, Any]:
        total, task_state = carry
        grads, (sums, task_state, prediction) = gradient(selected, rows, task_state)
        return (jax.tree.map(jnp.add, total, grads), task_state), (sums, prediction)

    zeros = jax.tree.map(jnp.zeros_like, selected)
    (grads, task_state), (sums, predictions) = jax.lax.scan(body, (zeros, task_state), parts)
    whole = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), predictions)
    return grads, (jax.tree.map(lambda a: a.sum(0), sums), task_state, whole)


def _averages(ema: dict[str, PyTree], params: PyTree) -> dict[str, PyTree]:
    leaves = flatten_dict(params)

    def step(decay: float, average: PyTree) -> PyTree:
        old = flatten_dict(average)
        return unflatten_dict({path: decay * value + (1 - decay) * leaves[path] for path, value in old.items()})

    return {name: step(float(name), average) for name, average in ema.items()}

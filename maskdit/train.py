"""`maskdit train`: the one training loop.

Mesh, data, task, restore, step, log, save, evaluate, in the order of reading. Networks, losses and data enter
through the config; nothing here knows them.
"""

import contextlib
import dataclasses
import functools
import logging
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.contracts import PyTree
from maskdit.draw import Draw
from maskdit.evals import pictures
from maskdit.tasks import task as tasks
from maskdit.training import checkpoint, evaluation, mesh
from maskdit.training.precision import on_this_device
from maskdit.training.run import LOADER_MAY_CHANGE, MAY_CHANGE, Run
from maskdit.training.step import TrainState, create, train_step

_LOG = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that cannot start or go on; the message says what to do."""


def train(config: ConfigDict, workdir: str, trust: Iterable[str] = ()) -> TrainState:
    """Trains what a config describes, from its last checkpoint if the work directory has one.

    Writes to the work directory: `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, `frozen/`,
    `samples.png` (for generators) and `loss.png`. SIGTERM and SIGINT save and return.

    Args:
      config: a config whose top level is a `maskdit.training.run.Run`.
      workdir: where the run lives; another run's directory is refused.
      trust: packages besides `maskdit` whose classes the config may name.

    Raises:
      TrainingError, CheckpointError, ConfigError, DataError, ValueError: with a sentence that says what to do.
    """
    # A run starts from the last checkpoint of its own work directory, else from scratch.
    root = epath.Path(workdir)
    _make_directory(root)
    saved = root / "checkpoints"
    started = saved.exists() and any(path.name.isdigit() for path in saved.iterdir())  # unfinished ones have a suffix
    config = _with_horizon(config, root, started)
    run: Run = configs.build(on_this_device(config), trust)
    task = dataclasses.replace(run.task, horizon=config.horizon)
    devices = run.mesh.make()
    rows = mesh.local_rows(devices, run.batch, run.microbatches)
    shapes = _batch_shapes(run, rows)
    task.check(shapes, run.data.vocabulary)
    _check_pictures(task, run)

    with contextlib.ExitStack() as stack:
        store = checkpoint.Store(workdir, run.checkpoints)
        stack.callback(store.close)
        seed = jax.device_put(jax.random.key(run.seed), mesh.replicated(devices))
        frozen = _frozen(task, run, workdir, devices, started)
        state = _initial_state(task, run, shapes, seed, devices, store)
        _write_config(config, root)
        first = int(jax.device_get(state.step))
        steps = _Programs(task, run, frozen, seed, devices)
        batches = stack.enter_context(run.data.batches(run.seed, run.batch, start=first, rows=rows))
        _announce(task, run, state, devices, workdir, first)
        log = stack.enter_context(run.log.open(workdir, total=run.steps, batch=run.batch, resume_step=first))
        stop = stack.enter_context(_signals())
        record = {
            "config": configs.to_json(config),
            "seed": run.seed,
            "ema": [str(decay) for decay in run.ema],
            "vocabulary": run.data.vocabulary,
        }
        if _evaluation_missing(run, root, first):
            log.write(first, *_evaluate(task, run, config, state, frozen, root, devices))
        stack.enter_context(jax.transfer_guard("disallow"))

        for step in range(first, run.steps):
            waited = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - waited
            if not steps.ready(step):
                log.flush()  # a pause to compile counts for no rate
            state, metrics = steps(step, state, batch)
            log.step(step + 1, metrics, waited, replaced=batch["replaced"])
            last = step + 1 == run.steps or stop()
            if last or (step + 1) % run.checkpoints.every == 0:
                log.flush()  # looks at every step's loss: what is not finite is not saved
                with jax.transfer_guard("allow"):
                    store.save(state, record)
            if not stop() and (last or (step + 1) % run.evaluation.every == 0):
                with jax.transfer_guard("allow"):
                    log.write(step + 1, *_evaluate(task, run, config, state, frozen, root, devices))
            if last:
                break
        log.flush()
        store.wait()
        _finish(root, log, step=int(jax.device_get(state.step)), total=run.steps)
    return state


@dataclasses.dataclass
class _Programs:
    """The compiled steps: one for each plan, compiled when it is first needed and never again."""

    task: Any
    run: Run
    frozen: PyTree
    seed: Any
    devices: Any
    compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, step: int, state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Any]:
        sharding = mesh.batch_sharding(self.devices)
        arrays = {
            name: jax.make_array_from_process_local_data(sharding, value, (self.run.batch, *value.shape[1:]))
            for name, value in batch.items()
            if name != "replaced"
        }
        key = self._key(step)
        if key not in self.compiled:
            self.compiled[key] = self._compile(key, state, arrays)
        return self.compiled[key](state, self.frozen, arrays, self.seed)

    def ready(self, step: int) -> bool:
        """Whether the step's program is compiled."""
        return self._key(step) in self.compiled

    def _key(self, step: int) -> Any:
        return self.task.plan(step), tasks.active_groups(self.task, step)

    def _compile(self, key: Any, state: TrainState, arrays: dict[str, Any]) -> Any:
        plan, groups = key
        begin = time.perf_counter()
        step = functools.partial(
            train_step, task=self.task, plan=plan, groups=groups, microbatches=self.run.microbatches
        )
        kept = jax.tree.map(lambda leaf: leaf.sharding, state)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(kept, mesh.replicated(self.devices)))
        with mesh.applied(self.devices):
            program = jitted.lower(state, self.frozen, arrays, self.seed).compile()
        _LOG.info("compiled the step of %s in %.1f s", plan, time.perf_counter() - begin)
        return program


def _make_directory(root: epath.Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (OSError, ImportError) as error:
        raise TrainingError(f"cannot write to the work directory {root}: {error}; choose another --workdir") from error


def _with_horizon(config: ConfigDict, root: epath.Path, started: bool) -> ConfigDict:
    """The config with its horizon fixed: that of the run's start, which nothing else may differ from either."""
    config = config.copy_and_resolve_references()
    if started and (root / "config.json").exists():
        stored = configs.from_json((root / "config.json").read_text())
        if config.horizon is None:
            config.horizon = stored.horizon
        differences = [line for line in configs.differences(config, stored) if not _may_change(line)]
        if differences:
            raise TrainingError(
                f"{root} belongs to a run with another config (asked for != stored):\n  "
                + "\n  ".join(differences)
                + "\nUse another --workdir, or the stored values; steps, log, evaluation, mesh and loader may change."
            )
    if config.horizon is None:
        config.horizon = config.steps
    return config


def _write_config(config: ConfigDict, root: epath.Path) -> None:
    if jax.process_index() == 0:
        unfinished = root / "config.json.tmp"
        unfinished.write_text(configs.to_json(config))
        unfinished.replace(root / "config.json")


def _may_change(difference: str) -> bool:
    path = difference.partition(":")[0].split(".")
    return path[0] in MAY_CHANGE or (path[0] == "data" and path[-1] in LOADER_MAY_CHANGE)


def _frozen(task: Any, run: Run, workdir: str, devices: Any, started: bool) -> PyTree:
    """Variables of frozen networks: those of the work directory once its run has begun, else made before step 0."""
    if not started:
        checkpoint.drop_frozen(workdir)
    found = checkpoint.read_frozen(workdir)
    if found is None:
        found = task.freeze(Draw(run.seed).named("freeze"), lambda: _images(run))
        checkpoint.write_frozen(workdir, found)
    return jax.device_put(found, mesh.replicated(devices))


def _images(run: Run) -> Iterator[np.ndarray]:
    with run.data.ordered(run.batch) as batches:
        for batch in batches:
            yield batch["image"][batch["weight"] > 0]


def _batch_shapes(run: Run, rows: list[int]) -> dict[str, Any]:
    """Shapes and dtypes of a global batch."""
    loader = dataclasses.replace(run.data, workers=0)  # worker processes take seconds to start
    with loader.batches(run.seed, run.batch, rows=rows[:1]) as batches:
        one = next(batches)
    return {
        name: jax.ShapeDtypeStruct((run.batch, *value.shape[1:]), value.dtype)
        for name, value in one.items()
        if name != "replaced"
    }


def _initial_state(
    task: Any, run: Run, shapes: dict[str, Any], seed: Any, devices: Any, store: checkpoint.Store
) -> TrainState:
    """The state of step 0, created sharded, or that of the last checkpoint."""
    make = functools.partial(create, task, run.ema, shapes)
    abstract = jax.eval_shape(make, seed)
    placed = mesh.shardings(abstract, devices)
    if store.latest is None:
        return jax.jit(lambda key: mesh.unboxed(make(key)), out_shardings=placed)(seed)
    like = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), mesh.unboxed(abstract), placed
    )
    return store.restore(store.latest, like)


def _check_pictures(task: Any, run: Run) -> None:
    """Refuses sampling settings that the first evaluation would stumble over."""
    model = task.model({"params": {}, "frozen": {}}, run.data.vocabulary)
    if run.evaluation.images and run.sampler is not None and hasattr(model, "sample"):
        dataclasses.replace(model, sampler=run.sampler, guidance=run.guidance).check()


def _evaluation_missing(run: Run, root: epath.Path, first: int) -> bool:
    """Whether the run was cut off between the checkpoint that it goes on from and that step's evaluation."""
    if not first or not (first % run.evaluation.every == 0 or first == run.steps):
        return False
    if run.held_out is None:
        return not (root / "samples.png").exists()
    lines = (root / "metrics.jsonl").read_text().splitlines() if (root / "metrics.jsonl").exists() else []
    return not any(f'"step": {first},' in line and '"held_out/' in line for line in lines)


def _evaluate(
    task: Any, run: Run, config: ConfigDict, state: TrainState, frozen: PyTree, root: epath.Path, devices: Any
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Held-out loss and a grid of samples, on averaged weights."""
    params = evaluation.averaged(state, run.ema)
    scalars, images = {}, {}
    if run.held_out is not None:
        rows = mesh.batch_sharding(devices)
        means = evaluation.held_out_loss(task, params, frozen, run.held_out, run.evaluation, run.seed, rows)
        scalars = {f"held_out/{name}": value for name, value in means.items()}
    model = task.model({"params": params, "frozen": frozen}, run.data.vocabulary)
    if run.evaluation.images and run.sampler is not None and hasattr(model, "sample"):
        model = dataclasses.replace(model, sampler=run.sampler, guidance=run.guidance, config=config)
        images["samples"] = evaluation.sample_grid(model, run.evaluation.images, run.seed)
        pictures.save_png(root / "samples.png", images["samples"])
    return scalars, images


def _announce(task: Any, run: Run, state: TrainState, devices: Any, workdir: str, first: int) -> None:
    """Says what is about to run."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    shape = ", ".join(f"{axis}={size}" for axis, size in devices.shape.items())
    _LOG.info("%s parameters; mesh %s on %d %s device(s)", f"{count:,}", shape, devices.size, jax.default_backend())
    found = tasks.plans(task, run.steps)
    listed = "; ".join(f"{plan} from step {start}" for (plan, _), start in found.items())
    _LOG.info("%d program(s) to compile: %s", len(found), listed)
    if first >= run.steps:
        _LOG.info("%s is at step %d already; nothing to train (more: --config.steps=N)", workdir, first)
    elif first:
        _LOG.info("going on from step %d in %s", first, workdir)


def _finish(root: epath.Path, log: Any, step: int, total: int) -> None:
    """Draws the loss curve and says what was written."""
    if jax.process_index() != 0:
        return
    metrics = root / "metrics.jsonl"
    if metrics.exists() and '"loss"' in metrics.read_text():
        pictures.loss_curve(metrics, root / "loss.png")
    if step < total:
        log.say(f"stopped at step {step}; the same command goes on from there")
    else:
        names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
        log.say(f"wrote {root}: " + ", ".join(names))


@contextlib.contextmanager
def _signals() -> Iterator[Any]:
    """A function that tells whether SIGTERM or SIGINT came; a second signal ends the process at once."""
    came: list[int] = []

    def handle(number: int, _: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

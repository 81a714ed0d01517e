"""`maskdit train`: the one training loop.

Mesh, data, task, restore, step, log, save, evaluate, in the order of reading. Networks, losses and data enter
through the config; nothing here knows them. Several processes run all of it side by side, each with its own rows and
parts of the state; the first one writes what is written once.
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit import references
from maskdit.contracts import NotFiniteError, PyTree
from maskdit.data.conditions import takes_text
from maskdit.draw import Draw
from maskdit.evals import pictures
from maskdit.tasks import task as tasks
from maskdit.training import checkpoint, distributed, evaluation, loop_scores, mesh, placement
from maskdit.training.precision import on_this_device
from maskdit.training.profiling import Profiler, Window
from maskdit.training.run import LOADER_MAY_CHANGE, MAY_CHANGE, Run
from maskdit.training.step import TrainState, abstract_state, compiled, initial_state, lower, weighted, with_weights
from maskdit.training.stopping import stopping

_LOG = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A run that cannot start or go on; the message says what to do."""


@distributed.together()
def train(
    config: ConfigDict, workdir: str, trust: Iterable[str] = (), profile: str | Window | None = None
) -> TrainState:
    """Trains what a config describes, from its last checkpoint if the work directory has one.

    Writes to the work directory: `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, `frozen/`,
    `samples.png` (for generators) or `reconstructions.png` (for tokenizers), `evaluation/` (for runs with scores), and
    `loss.png`. SIGTERM and SIGINT, to any process, save and return.

    Args:
      config: a config whose top level is a `maskdit.training.run.Run`.
      workdir: where the run lives, one directory for all processes; another run's is refused.
      trust: packages besides `maskdit` whose classes the config may name.
      profile: steps to trace into `profile/` of the work directory, `FIRST:COUNT`.

    Raises:
      TrainingError, CheckpointError, ConfigError, DataError, DistributedError, ValueError: with a sentence that says
        what to do.
    """
    root, window = epath.Path(workdir), Window.parse(profile) if isinstance(profile, str) else profile
    distributed.agree(
        verb="train",
        workdir=str(root),
        trust=list(trust),
        profile=str(window),
        config=json.loads(configs.to_json(config)),
    )
    _make_directory(root)
    # A run starts from the last checkpoint of its own work directory, else from the weights that `init_from` names,
    # else from scratch.
    started = distributed.first(lambda: _started(root))
    before = _earlier_config(root, started, trust)
    config, weights = references.resolve(config, before, started, configs.build(config.mesh).make())
    config = _with_horizon(config, before if started else None, root)
    run: Run = configs.build(on_this_device(config), trust)
    task = dataclasses.replace(run.task, horizon=config.horizon)
    devices = run.mesh.make()
    rows = mesh.local_rows(devices, run.batch, run.microbatches)
    shapes = _batch_shapes(run.data, run.batch, rows[0])
    task.check(shapes, run.data.vocabulary)
    _check_evaluation(task, run, shapes)
    scores = loop_scores.prepare(task, run, config, workdir, tuple(trust))
    like = abstract_state(task, run.ema, shapes, devices)
    given = weights.pop(references.INIT_FROM).fitting(weighted(like)) if references.INIT_FROM in weights else {}

    with contextlib.ExitStack() as stack:
        seed = jax.jit(lambda: jax.random.key(run.seed), out_shardings=mesh.replicated(devices))()
        frozen = _frozen(task, run, workdir, devices, started, weights)
        run.data.check_tokenizer(getattr(task, "tokenizer", None), frozen.get("tokenizer"))
        store = stack.enter_context(checkpoint.Store(workdir, run.checkpoints, scores.scored))
        state = _initial_state(task, run, shapes, seed, store, like, given)
        weights.clear()  # frozen/ has them now, the state those of `given`
        given.clear()
        _write_config(config, root)
        first = int(jax.device_get(state.step))
        scores.resume(first)
        if window is not None:
            window.check(first, run.steps)
        steps = _Programs(task, run, frozen, seed, devices)
        batches = stack.enter_context(run.data.batches(run.seed, run.batch, start=first, rows=rows))
        _announce(task, run, state, devices, workdir, first)
        log = stack.enter_context(run.log.open(workdir, total=run.steps, batch=run.batch, resume_step=first))
        stop = stack.enter_context(stopping(first))
        trace = stack.enter_context(Profiler(window, root / "profile"))
        record = {
            "config": configs.to_json(config),
            "seed": run.seed,
            "ema": [str(decay) for decay in run.ema],
            "vocabulary": run.data.vocabulary,
        }
        if distributed.first(lambda: _evaluation_missing(run, root, first)):
            log.write(first, *_evaluate(task, run, config, state, frozen, root, devices))
        if scores.missing(first):
            log.write(first, scores.measure(first, _model(task, run, config, state, frozen, devices)))
        stack.enter_context(jax.transfer_guard("disallow"))

        for step in range(first, run.steps):
            waited = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - waited
            if not steps.ready(step):
                log.flush()  # a pause to compile counts for no rate
            state, metrics = trace(step + 1, steps, step, state, batch)
            log.step(step + 1, metrics, waited, replaced=batch["replaced"])
            stopped = stop.after(step + 1)
            last = stopped or step + 1 == run.steps
            saved = last or (step + 1) % run.checkpoints.every == 0
            evaluated = not stopped and run.evaluation.due(step + 1, run.steps)
            scored = not stopped and scores.due(step + 1)
            if saved or evaluated or scored:
                log.flush()  # looks at every step's loss: what is not finite is not saved
                with jax.transfer_guard("allow"):
                    if saved:
                        store.save(state, record)
                    if evaluated:
                        log.write(step + 1, *_evaluate(task, run, config, state, frozen, root, devices))
                    if scored:
                        model = _model(task, run, config, state, frozen, devices)
                        log.write(step + 1, scores.measure(step + 1, model))
                    if scored and not saved and store.is_best(step + 1):
                        store.save(state, record)
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
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, step: int, state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Any]:
        arrays = placement.own_rows(batch, self.run.batch, mesh.batch_sharding(self.devices))
        key = self._key(step)
        if key not in self.programs:
            self.programs[key] = self._compile(key, state, arrays)
        return self.programs[key](state, self.frozen, arrays, self.seed)

    def ready(self, step: int) -> bool:
        """Whether the step's program is compiled."""
        return self._key(step) in self.programs

    def _key(self, step: int) -> Any:
        return self.task.plan(step), tasks.active_groups(self.task, step)

    def _compile(self, key: Any, state: TrainState, arrays: dict[str, Any]) -> Any:
        plan, groups = key
        begin = time.perf_counter()
        static = {"task": self.task, "plan": plan, "groups": groups, "microbatches": self.run.microbatches}
        lowered = lower(state, self.frozen, arrays, self.seed, **static, devices=self.devices)
        program = compiled(lowered, self.devices)
        distributed.barrier()  # a collective does not wait long for a process that still compiles
        _LOG.info("compiled the step of %s in %.1f s", plan, time.perf_counter() - begin)
        return program


def _make_directory(root: epath.Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (OSError, ImportError) as error:
        advice = "choose another --workdir" + ", or pip install maskdit[gcs]" * isinstance(error, ImportError)
        raise TrainingError(f"cannot write to the work directory {root}: {error}; {advice}") from error
    if distributed.peers() is not None:
        distributed.share(root)


def _started(root: epath.Path) -> bool:
    """Whether there is a checkpoint to go on from; unfinished ones have a suffix."""
    saved = root / "checkpoints"
    return saved.exists() and any(path.name.isdigit() for path in saved.iterdir())


def _earlier_config(root: epath.Path, started: bool, trust: Iterable[str]) -> ConfigDict | None:
    """The config that an earlier start left in the work directory."""
    path = root / "config.json"
    text = distributed.first(lambda: path.read_text() if path.exists() else None)
    if text is None and started:
        raise TrainingError(
            f"{root} holds weights and no run: choose another --workdir, and start from them with "
            f"--config.init_from={root}"
        )
    try:
        return None if text is None else configs.completed(configs.from_json(text), trust)
    except ValueError as error:
        raise TrainingError(f"{path} is not the config of a run ({error}): choose another --workdir") from error


def _with_horizon(config: ConfigDict, stored: ConfigDict | None, root: epath.Path) -> ConfigDict:
    """The config with its horizon fixed: that of the run's start, which nothing else may differ from either."""
    if stored is not None:
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
    if distributed.is_first():
        unfinished = root / "config.json.tmp"
        unfinished.write_text(configs.to_json(config))
        unfinished.replace(root / "config.json")


def _may_change(difference: str) -> bool:
    path = difference.partition(":")[0].split(".")
    return path[0] in MAY_CHANGE or (path[0] == "data" and path[-1] in LOADER_MAY_CHANGE)


def _frozen(
    task: Any, run: Run, workdir: str, devices: Any, started: bool, weights: Mapping[str, references.Weights]
) -> PyTree:
    """Variables of frozen networks: those of the work directory once its run has begun, else made before step 0.

    The first process makes them (others would read all data again, and might not get the same to the last bit) and
    writes them to the work directory, from which each process takes the parts of its devices.
    """

    def make() -> PyTree | None:
        if not started:
            checkpoint.drop_frozen(workdir)
        if (epath.Path(workdir) / "frozen").exists():
            return None
        given = {path.removeprefix("task."): found for path, found in weights.items() if path.startswith("task.")}
        made = task.freeze(Draw(run.seed).named("freeze"), lambda: run.data.images(run.batch), given)
        checkpoint.write_frozen(workdir, made)
        return None if jax.tree.leaves(made) else made

    empty = distributed.first(make)
    return checkpoint.read_frozen(workdir, lambda tree: mesh.shardings(tree, devices)) if empty is None else empty


def _batch_shapes(loader: Any, batch: int, row: int = 0) -> dict[str, Any]:
    """Shapes and dtypes of a global batch, from one row of it."""
    loader = dataclasses.replace(loader, workers=0)  # worker processes take seconds to start
    with loader.batches(0, batch, rows=[row]) as batches:
        one = next(batches)
    return {
        name: jax.ShapeDtypeStruct((batch, *value.shape[1:]), value.dtype)
        for name, value in one.items()
        if name != "replaced"
    }


def _initial_state(
    task: Any,
    run: Run,
    shapes: dict[str, Any],
    seed: Any,
    store: checkpoint.Store,
    like: TrainState,
    given: Mapping[str, Any],
) -> TrainState:
    """The state of the last checkpoint, or that of step 0, created sharded, with given weights where there are any."""
    latest = distributed.first(lambda: store.latest)
    if latest is not None:
        return store.restore(latest, like)
    state = initial_state(task, run.ema, shapes, seed, like)
    return with_weights(state, given) if given else state


def _check_evaluation(task: Any, run: Run, shapes: dict[str, Any]) -> None:
    """Refuses what the first evaluation would stumble over: sampling settings, held-out images of another size."""
    if run.held_out is not None and run.held_out.size != run.data.size:
        raise TrainingError(
            f"held-out images are of side {run.held_out.size}, those to train on of {run.data.size}: set "
            f"--config.held_out.size={run.data.size}"
        )
    if run.held_out is not None:
        theirs = _batch_shapes(run.held_out, run.batch)
        if (theirs, run.held_out.vocabulary) != (shapes, run.data.vocabulary):  # else they fit as those do
            try:
                task.check(theirs, run.held_out.vocabulary)
            except ValueError as error:
                raise TrainingError(f"the held-out data do not fit: {error}") from error
    model = task.model({"params": {}, "frozen": {}, "state": {}}, run.data.vocabulary)
    if run.evaluation.images and run.sampler is not None and hasattr(model, "sample"):
        dataclasses.replace(model, sampler=run.sampler, guidance=run.guidance).check()
        if run.held_out is None and takes_text(task.network):
            raise TrainingError(
                "pictures of a model that takes text need texts: set held_out, whose texts they show, or "
                "--config.evaluation.images=0"
            )


def _evaluation_missing(run: Run, root: epath.Path, first: int) -> bool:
    """Whether the run was cut off between the checkpoint that it goes on from and that step's evaluation."""
    if not first or not run.evaluation.due(first, run.steps):
        return False
    if run.held_out is None:
        return not (root / "samples.png").exists()
    lines = (root / "metrics.jsonl").read_text().splitlines() if (root / "metrics.jsonl").exists() else []
    return not any(f'"step": {first},' in line and '"held_out/' in line for line in lines)


def _evaluate(
    task: Any, run: Run, config: ConfigDict, state: TrainState, frozen: PyTree, root: epath.Path, devices: Any
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Held-out loss and a grid of samples or reconstructions, on averaged weights."""
    variables = {"params": evaluation.averaged(state, run.ema), "frozen": frozen, "state": state.task}
    scalars, images = {}, {}
    if run.held_out is not None:
        means = evaluation.held_out_loss(task, variables, run.held_out, run.evaluation, run.seed, devices)
        scalars = {f"held_out/{name}": value for name, value in means.items()}
    model = _model(task, run, config, state, frozen, devices)
    try:
        if run.evaluation.images and run.sampler is not None and hasattr(model, "sample"):
            images["samples"] = evaluation.sample_grid(model, run.evaluation.images, run.seed, run.held_out)
        if run.evaluation.images and run.held_out is not None and hasattr(model, "reconstruct"):
            images["reconstructions"] = evaluation.reconstruction_grid(model, run.held_out, run.evaluation.images)
    except NotFiniteError as error:  # a run may come to itself again; its loss tells whether it does
        _LOG.warning("no picture of this step: %s", error)
    if distributed.is_first():
        for name, picture in images.items():
            pictures.save_png(root / f"{name}.png", picture)
    return scalars, images


def _model(task: Any, run: Run, config: ConfigDict, state: TrainState, frozen: PyTree, devices: Any) -> Any:
    """The run's model with averaged weights, on the run's mesh; a generator with its sampler and guidance."""
    variables = {"params": evaluation.averaged(state, run.ema), "frozen": frozen, "state": state.task}
    model = dataclasses.replace(task.model(variables, run.data.vocabulary), config=config, devices=devices)
    generates = hasattr(model, "sample")
    return dataclasses.replace(model, sampler=run.sampler, guidance=run.guidance) if generates else model


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
    if not distributed.is_first():
        return
    metrics = root / "metrics.jsonl"
    if metrics.exists() and '"loss"' in metrics.read_text():
        pictures.loss_curve(metrics, root / "loss.png")
    if step < total:
        log.say(f"stopped at step {step}; the same command goes on from there")
    else:
        names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
        log.say(f"wrote {root}: " + ", ".join(names))

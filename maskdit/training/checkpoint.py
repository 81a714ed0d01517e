"""Checkpoints: Orbax, asynchronous and atomic.

A work directory holds `checkpoints/STEP/{params, ema, opt, task, meta}` and, written once, `frozen/`: the networks that
sampling needs but that are not trained. A step directory appears under its name when it is complete and not before,
so a process that dies while it saves leaves the one before usable. Where a run makes scores, the step with the best one
stays too (`maskdit.training.best`).

Under several processes all of them call everything here, in the same order: each writes and reads its own parts.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from maskdit.contracts import PyTree
from maskdit.training import best, distributed
from maskdit.training.optim import merge
from maskdit.training.step import TrainState

_ITEMS = ("params", "ema", "opt", "task")

Place = Callable[[PyTree], PyTree]
"""Shardings for a tree of shapes and dtypes."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; the message says what there is and what to do."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are saved and which are kept.

    Attributes:
      every: steps between two; the last step of a run is saved in any case.
      keep: how many of the latest are kept, besides the best one where the run has scores.
      keep_every: steps that are multiples of this are kept for good; None for none.
    """

    every: int = 1000
    keep: int = 3
    keep_every: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"every and keep must be 1 or more, got {self.every} and {self.keep}")
        if self.keep_every is not None and self.keep_every < 1:
            raise ValueError(f"keep_every must be 1 or more, or None, got {self.keep_every}")


@dataclasses.dataclass(frozen=True)
class Stored:
    """What `read` finds.

    Attributes:
      variables: `params`, `frozen`, and `state`, what the task has learned without gradients.
      meta: the checkpoint's meta data.
      ema: the average that `params` are; `none` for raw weights.
    """

    variables: PyTree
    meta: dict[str, Any]
    ema: str = "none"


class Store:
    """The checkpoints of one work directory, for writing.

    Args:
      workdir: the directory.
      settings: which are kept.
      scored: the scores of steps, by which the best one is kept too; None for those that the directory has.

    Raises:
      CheckpointError: where the directory cannot be written to.
    """

    def __init__(self, workdir: str, settings: Checkpoints, scored: best.Scored | None = None):
        self._root, self._scored = epath.Path(workdir), scored or best.read(workdir)
        self._keeping = best.Keeping(settings.keep, settings.keep_every, self._scored)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keeping,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        with told(f"cannot use {workdir} for checkpoints"):
            self._manager = _manager(self._root, options)

    @property
    def latest(self) -> int | None:
        """The last complete step."""
        return self._manager.latest_step()

    def is_best(self, step: int) -> bool:
        """Whether a step, saved or not, scores better than all that are saved."""
        return self._scored.best([*self._manager.all_steps(), step]) == step

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving the state under its step; `meta` also records step and library versions.

        Raises:
          CheckpointError: where this or the save before failed, such as for want of space.
        """
        step = int(jax.device_get(state.step))
        meta = {**meta, "step": step, "versions": distributed.versions()}
        items = {"params": state.params, "ema": state.ema, "opt": state.opt, "task": state.task}
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if jax.tree.leaves(tree)}
        with self._saving(step):
            self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(items)))
            self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arguments), force=True)

    def wait(self) -> None:
        """Waits until what is being saved is complete, and removes a former best that nothing keeps any more.

        Raises:
          CheckpointError: where it could not be saved.
        """
        with self._saving(None):
            self._manager.wait_until_finished()
            steps = self._manager.all_steps()
            for step, kept in zip(steps, self._keeping.kept(steps), strict=True):
                if not kept and step in self._scored.values:
                    self._manager.delete(step)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, on the shardings of `like` (shapes, dtypes and shardings)."""
        items = {name: getattr(like, name) for name in _ITEMS}
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in items.items() if jax.tree.leaves(tree)}
        with told(f"checkpoint {step} in {self._root} cannot be restored"):
            found = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        number = jax.device_put(jax.numpy.int32(step), like.step.sharding)
        return TrainState(step=number, **{name: found.get(name, items[name]) for name in _ITEMS})

    def close(self) -> None:
        """Finishes and ends the background threads. What fails here `wait` has told already."""
        with suppress(Exception):
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        # after an error the other processes may never come to where a save ends
        if error is None or distributed.peers() is None:
            self.close()

    def _check_space(self, needed: int) -> None:
        """Refuses to begin what will not fit: a save that runs out of space half-way fails in many voices."""
        if "://" in str(self._root):
            return
        free = distributed.first(lambda: shutil.disk_usage(self._root).free)  # one disk, which all see filling up
        if free < needed:
            raise OSError(f"no space left: a checkpoint takes about {needed >> 20} MiB and {free >> 20} MiB are free")

    @contextmanager
    def _saving(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            complete = [s for s in self._manager.all_steps() if s != step]
            kept = f"checkpoint {max(complete)} is complete" if complete else "no checkpoint is complete yet"
            raise CheckpointError(
                f"could not save to {self._root}: {_first_line(error)}. {kept[0].upper()}{kept[1:]}; free some "
                "space, or see to the directory, and run the same command again: it goes on from there"
            ) from error


def write_weights(workdir: str, variables: PyTree, meta: dict[str, Any]) -> None:
    """Writes weights that no run here has trained, as `read` reads them: a checkpoint of step 0, and `frozen/`.

    Arrays are written from where they lie, so that memory holds them once. This process writes alone.

    Args:
      workdir: a directory without checkpoints.
      variables: `params` and `frozen`, host arrays.
      meta: the config, label names and the like.

    Raises:
      CheckpointError: where they cannot be written.
    """
    root, meta = epath.Path(workdir), {"ema": [], **meta, "step": 0, "versions": distributed.versions()}
    alone = _alone("weights")
    with told(f"could not write {workdir}"):
        if jax.tree.leaves(variables["frozen"]):
            with ocp.Checkpointer(_from_host(alone), **alone) as checkpointer:
                checkpointer.save(_absolute(root / "frozen"), args=ocp.args.PyTreeSave(variables["frozen"]))
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **alone)
        handlers = {"params": _from_host(alone), "meta": ocp.JsonCheckpointHandler(**alone)}
        manager = ocp.CheckpointManager(_absolute(root / "checkpoints"), options=options, item_handlers=handlers)
        try:
            params = ocp.args.PyTreeSave(variables["params"])
            manager.save(0, args=ocp.args.Composite(params=params, meta=ocp.args.JsonSave(meta)))
        finally:
            manager.close()


def write_frozen(workdir: str, frozen: PyTree) -> None:
    """Writes the variables of networks that are not trained, once per work directory, complete or not at all.

    The first process alone calls this, and `drop_frozen`: it has made them.
    """
    path = epath.Path(workdir) / "frozen"
    if path.exists() or not jax.tree.leaves(frozen):
        return
    with told(f"could not write {path}"), ocp.StandardCheckpointer(**_alone("frozen")) as checkpointer:
        checkpointer.save(_absolute(path), jax.device_get(frozen))
        checkpointer.wait_until_finished()


def drop_frozen(workdir: str) -> None:
    """Removes what `write_frozen` wrote for a run that never reached a checkpoint."""
    path = epath.Path(workdir) / "frozen"
    if path.exists():
        path.rmtree()


def read_frozen(workdir: str, place: Place | None = None) -> PyTree | None:
    """The variables written by `write_frozen`; None where there are none."""
    path = epath.Path(workdir) / "frozen"
    if not distributed.first(path.exists):
        return None
    with told(f"{path} cannot be read"), ocp.StandardCheckpointer() as checkpointer:
        abstract = _abstract(checkpointer.metadata(_absolute(path)).item_metadata.tree, place)
        return checkpointer.restore(_absolute(path), abstract)


def read(workdir: str, ema: str = "default", step: int | str | None = None, *, place: Place | None = None) -> Stored:
    """Reads what sampling needs; the optimizer's state stays on disk.

    Args:
      workdir: a work directory.
      ema: `default` for the run's first average (raw weights where the run has none), its name, or `none` for the
        raw weights.
      step: a kept step, or `best`, that with the best score; None for the last.
      place: shardings for a tree of shapes and dtypes; None for the first device of this process.

    Raises:
      CheckpointError: where there is no such directory, checkpoint, step or average; the message lists those there are.
    """
    root = epath.Path(workdir)
    with told(f"{workdir} cannot be read"):
        found = distributed.first((root / "checkpoints").exists)
    if not found:
        raise CheckpointError(f"{workdir} holds no checkpoints: give the --workdir of a training run")
    with _quiet():
        manager = _manager(root, ocp.CheckpointManagerOptions(read_only=True))
    try:
        steps = distributed.first(lambda: sorted(manager.all_steps()))  # a run that goes on adds and removes some
        if not steps:
            raise CheckpointError(f"{workdir} holds no complete checkpoint yet")
        asked = steps[-1] if step is None else _best(workdir, steps) if step == best.BEST else step
        if asked not in steps:
            kept = ", ".join(map(str, steps))
            raise CheckpointError(f"{workdir} keeps the steps {kept}; got step {asked}")
        step = int(asked)
        with told(f"checkpoint {step} in {workdir} cannot be read"):
            meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
            items = manager.item_metadata(step)
        average = _average(meta["ema"], ema, workdir)
        params = _read_params(manager, step, items, average, place)
        state = _read_state(manager, step, items, place)
    finally:
        manager.close()
    variables = {"params": params, "frozen": read_frozen(workdir, place) or {}, "state": state}
    return Stored(variables, meta, average or "none")


def _average(names: list[str], wanted: str, workdir: str) -> str | None:
    if wanted == "none" or (wanted == "default" and not names):
        return None
    if wanted == "default":
        return names[0]
    if wanted not in names:
        have = f"the averages {', '.join(names)}" if names else "no averages, only the raw weights (--ema none)"
        raise CheckpointError(f"{workdir} holds {have}; got ema '{wanted}'")
    return wanted


def _best(workdir: str, steps: list[int]) -> int:
    with told(f"{workdir} has no best checkpoint"):
        found = best.read(workdir).best(steps)
    if found is None:
        raise CheckpointError(
            f"{workdir} keeps no checkpoint with a score, so that none is the best: name a step "
            f"({', '.join(map(str, steps))}), or train with --config.evaluation.scores"
        )
    return found


def _read_params(
    manager: ocp.CheckpointManager, step: int, found: Any, average: str | None, place: Place | None
) -> PyTree:
    params, ema = _abstract(found.params.tree, place), None
    if average is not None:
        ema = _abstract(found.ema.tree[average], place)
        restored = manager.restore(step, args=ocp.args.Composite(ema=_partial({average: ema})))
        ema = restored.ema[average]
        if str(jax.tree.structure(ema)) == str(jax.tree.structure(params)):
            return ema
    raw = manager.restore(step, args=ocp.args.Composite(params=_partial(params))).params
    return raw if ema is None else merge(raw, ema)


def _read_state(manager: ocp.CheckpointManager, step: int, found: Any, place: Place | None) -> PyTree:
    if "task" not in found.keys() or found.task is None:  # noqa: SIM118  # Orbax's own kind of mapping
        return {}
    state = _abstract(found.task.tree, place)
    return manager.restore(step, args=ocp.args.Composite(task=_partial(state))).task


def _partial(abstract: PyTree) -> Any:
    arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=arguments, partial_restore=True)


def _abstract(metadata: PyTree, place: Place | None) -> PyTree:
    """Shapes, dtypes and shardings, whatever the arrays were saved from."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        bare,
        place(bare) if place else jax.tree.map(lambda _: here, bare),
    )


def _alone(what: str) -> dict[str, Any]:
    """Options of Orbax for what the first process writes while the others do something else."""
    if distributed.peers() is None:
        return {}
    options = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix=what)
    return {"multiprocessing_options": options}


def _from_host(alone: dict[str, Any]) -> ocp.PyTreeCheckpointHandler:
    """Writes host arrays without a copy of them."""
    arrays = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)  # nothing changes them meanwhile
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, arrays))
    # OCDBT would collect the whole checkpoint in memory; weights hardly compress
    return ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry, **alone)


def _manager(root: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    handlers: dict[str, Any] = {name: ocp.PyTreeCheckpointHandler() for name in ("params", "ema", "task")}
    handlers["opt"] = ocp.StandardCheckpointHandler()
    if not options.read_only:
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS}
    handlers["meta"] = ocp.JsonCheckpointHandler()
    return ocp.CheckpointManager(_absolute(root / "checkpoints"), options=options, item_handlers=handlers)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warnings of what `read_only` implies."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(min(before, absl_logging.ERROR))
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def _absolute(path: epath.Path) -> epath.Path:
    """As Orbax wants paths; those in buckets are absolute, which pathlib does not know."""
    return path if "://" in os.fspath(path) else path.absolute()


@contextmanager
def told(what: str) -> Iterator[None]:
    """Tells what goes wrong inside as a `CheckpointError`: `what`, and the first line of the error."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        hint = " (buckets need pip install maskdit[gcs])" if isinstance(error, ImportError) else ""
        raise CheckpointError(f"{what}: {_first_line(error)}{hint}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__

"""Checkpoints: Orbax, asynchronous and atomic.

A work directory holds `checkpoints/STEP/{params, ema, opt, task, meta}` and, written once, `frozen/`: the networks that
sampling needs but that are not trained. A step directory appears under its name when it is complete and not before,
so a process that dies while it saves leaves the one before usable.
"""

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from maskdit.contracts import PyTree
from maskdit.training.optim import merge
from maskdit.training.step import TrainState

_ITEMS = ("params", "ema", "opt", "task")
_LIBRARIES = ("maskdit", "jax", "flax", "optax", "orbax-checkpoint", "grain")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; the message says what there is and what to do."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are saved and which are kept.

    Attributes:
      every: steps between two; the last step of a run is saved in any case.
      keep: how many of the latest are kept.
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
    """What `read` finds: `params` and `frozen` variables, and the checkpoint's meta data."""

    variables: PyTree
    meta: dict[str, Any]


class Store:
    """The checkpoints of one work directory, for writing.

    Raises:
      CheckpointError: where the directory cannot be written to.
    """

    def __init__(self, workdir: str, settings: Checkpoints):
        self._root = epath.Path(workdir)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=settings.keep,
            keep_period=settings.keep_every,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        with _told(f"cannot use {workdir} for checkpoints"):
            self._manager = _manager(self._root, options)

    @property
    def latest(self) -> int | None:
        """The last complete step."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving the state under its step; `meta` also records step and library versions.

        Raises:
          CheckpointError: where this or the save before failed, such as for want of space.
        """
        step = int(jax.device_get(state.step))
        meta = {**meta, "step": step, "versions": _versions()}
        items = {"params": state.params, "ema": state.ema, "opt": state.opt, "task": state.task}
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if jax.tree.leaves(tree)}
        with self._saving(step):
            self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(items)))
            self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arguments), force=True)

    def wait(self) -> None:
        """Waits until what is being saved is complete.

        Raises:
          CheckpointError: where it could not be saved.
        """
        with self._saving(None):
            self._manager.wait_until_finished()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, on the shardings of `like` (shapes, dtypes and shardings)."""
        items = {name: getattr(like, name) for name in _ITEMS}
        arguments = {name: ocp.args.StandardRestore(tree) for name, tree in items.items() if jax.tree.leaves(tree)}
        with _told(f"checkpoint {step} in {self._root} cannot be restored"):
            found = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        number = jax.device_put(jax.numpy.int32(step), like.step.sharding)
        return TrainState(step=number, **{name: found.get(name, items[name]) for name in _ITEMS})

    def close(self) -> None:
        """Finishes and ends the background threads. What fails here `wait` has told already."""
        with suppress(Exception):
            self._manager.close()

    def _check_space(self, needed: int) -> None:
        """Refuses to begin what will not fit: a save that runs out of space half-way fails in many voices."""
        if "://" in str(self._root):
            return
        free = shutil.disk_usage(self._root).free
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


def write_frozen(workdir: str, frozen: PyTree) -> None:
    """Writes the variables of networks that are not trained, once per work directory, complete or not at all."""
    path = epath.Path(workdir) / "frozen"
    if path.exists() or not jax.tree.leaves(frozen):
        return
    with _told(f"could not write {path}"), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), frozen)
        checkpointer.wait_until_finished()


def drop_frozen(workdir: str) -> None:
    """Removes what `write_frozen` wrote for a run that never reached a checkpoint."""
    path = epath.Path(workdir) / "frozen"
    if path.exists():
        path.rmtree()


def read_frozen(workdir: str) -> PyTree | None:
    """The variables written by `write_frozen`, on the host; None where there are none."""
    path = epath.Path(workdir) / "frozen"
    if not path.exists():
        return None
    with ocp.StandardCheckpointer() as checkpointer:
        abstract = _abstract(checkpointer.metadata(path.absolute()).item_metadata.tree)
        return checkpointer.restore(path.absolute(), abstract)


def read(workdir: str, ema: str = "default", step: int | None = None) -> Stored:
    """Reads what sampling needs; the optimizer's state stays on disk.

    Args:
      workdir: a work directory.
      ema: `default` for the run's first average (raw weights where the run has none), its name, or `none` for the
        raw weights.
      step: a kept step; None for the last.

    Raises:
      CheckpointError: where there is no such directory, checkpoint, step or average; the message lists those there are.
    """
    root = epath.Path(workdir)
    with _told(f"{workdir} cannot be read"):
        found = (root / "checkpoints").exists()
    if not found:
        raise CheckpointError(f"{workdir} holds no checkpoints: give the --workdir of a training run")
    manager = _manager(root, ocp.CheckpointManagerOptions(read_only=True))
    try:
        steps = sorted(manager.all_steps())
        if not steps:
            raise CheckpointError(f"{workdir} holds no complete checkpoint yet")
        if step is not None and step not in steps:
            raise CheckpointError(f"{workdir} keeps the steps {', '.join(map(str, steps))}; got step {step}")
        step = steps[-1] if step is None else step
        with _told(f"checkpoint {step} in {workdir} cannot be read"):
            meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
            items = manager.item_metadata(step)
        params = _read_params(manager, step, items, _average(meta["ema"], ema, workdir))
    finally:
        manager.close()
    return Stored({"params": params, "frozen": read_frozen(workdir) or {}}, meta)


def write_file(path: str, stored: Stored, dtype: str = "float32") -> None:
    """Writes what `read` gives into one `.npz` file, for weights that are shipped or sent.

    Args:
      path: ends in `.npz`.
      stored: variables and meta data.
      dtype: of the file's floating-point arrays; `float16` halves it.
    """
    flat = traverse_util.flatten_dict(jax.device_get(stored.variables), sep="/")
    small = {k: v.astype(dtype) if np.issubdtype(v.dtype, np.floating) else v for k, v in flat.items()}
    meta = np.frombuffer(json.dumps(stored.meta).encode(), np.uint8)
    with _told(f"could not write {path}"), epath.Path(path).open("wb") as file:
        np.savez_compressed(file, **small, meta=meta)


def read_file(path: str) -> Stored:
    """Reads a file of `write_file`; arrays come back as float32.

    Raises:
      CheckpointError: for a file of another kind.
    """
    with _told(f"{path} is no model file"), epath.Path(path).open("rb") as file:
        arrays = dict(np.load(file))
        meta = json.loads(arrays.pop("meta").tobytes())
    full = {k: v.astype(np.float32) if np.issubdtype(v.dtype, np.floating) else v for k, v in arrays.items()}
    variables = traverse_util.unflatten_dict(full, sep="/")
    return Stored(jax.device_put({"params": {}, "frozen": {}, **variables}), meta)


def _average(names: list[str], wanted: str, workdir: str) -> str | None:
    if wanted == "none" or (wanted == "default" and not names):
        return None
    if wanted == "default":
        return names[0]
    if wanted not in names:
        have = f"the averages {', '.join(names)}" if names else "no averages, only the raw weights (--ema none)"
        raise CheckpointError(f"{workdir} holds {have}; got ema '{wanted}'")
    return wanted


def _read_params(manager: ocp.CheckpointManager, step: int, found: Any, average: str | None) -> PyTree:
    params, ema = _abstract(found.params.tree), None
    if average is not None:
        ema = _abstract(found.ema.tree[average])
        restored = manager.restore(step, args=ocp.args.Composite(ema=_partial({average: ema})))
        ema = restored.ema[average]
        if str(jax.tree.structure(ema)) == str(jax.tree.structure(params)):
            return ema
    raw = manager.restore(step, args=ocp.args.Composite(params=_partial(params))).params
    return raw if ema is None else merge(raw, ema)


def _partial(abstract: PyTree) -> Any:
    arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=arguments, partial_restore=True)


def _abstract(metadata: PyTree) -> PyTree:
    """Shapes and dtypes on one device of this machine, whatever they were saved from."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), metadata)


def _manager(root: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    handlers: dict[str, Any] = {name: ocp.PyTreeCheckpointHandler() for name in ("params", "ema")}
    handlers |= {name: ocp.StandardCheckpointHandler() for name in ("opt", "task")}
    if not options.read_only:
        handlers = {name: ocp.StandardCheckpointHandler() for name in _ITEMS}
    handlers["meta"] = ocp.JsonCheckpointHandler()
    return ocp.CheckpointManager((root / "checkpoints").absolute(), options=options, item_handlers=handlers)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__

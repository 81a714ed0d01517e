"""`maskdit import`: published weights as a checkpoint that `load`, `sample` and `init_from` take."""

import contextlib
import logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit import references
from maskdit.contracts import PyTree
from maskdit.data import imagenet
from maskdit.interop import download, layouts, published
from maskdit.interop.state_file import WITHIN, State, open_state
from maskdit.references import WeightsError
from maskdit.training import checkpoint, distributed

_LOG = logging.getLogger(__name__)
_REST = 64 << 20
"""Bytes that a checkpoint may take besides its arrays."""


def import_weights(
    name: str,
    source: str | None = None,
    out: str | None = None,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    trust: Iterable[str] = (),
) -> str:
    """Brings a file of weights in.

    Args:
      name: of published weights (`maskdit.interop.published.ALIASES`), or of a config whose network has a published
        layout.
      source: a file, folder, index of shards, URL or Hugging Face repository; None for where the name's weights are
        published.
      out: the work directory to write, which must not hold anything; None for the cache, where `load` finds the name.
      overrides: entries of the config to set, as pairs of a path and a text.
      trust: packages besides `maskdit` whose classes the config may name.

    Returns:
      The work directory.

    Raises:
      WeightsError, FileError, TableError, DownloadError, CheckpointError, ConfigError, OSError: with a sentence that
        says what to do. Nothing is left in `out` then.
    """
    entry = published.ALIASES.get(name)
    if entry is None and name.partition(":")[0] not in configs.names() and not name.partition(":")[0].endswith(".py"):
        near = configs.nearest(name, list(published.ALIASES))
        raise WeightsError(f"there are no published weights '{name}', and no config of that name; {near}")
    config = configs.load(name) if entry is None else entry.config()
    for path, text in overrides:
        configs.override_text(config, path, text)
    if out is None and (entry is None or overrides):
        raise WeightsError(
            "the cache holds published weights as they are, by their names: give OUT, a directory to write"
        )
    target = epath.Path(out) if out is not None else _cache(name)
    _refuse_existing(target)
    file = _published(entry, name) if source is None else _file(source, entry)
    state = open_state(file, WITHIN if entry is None else entry.within)
    if state.placeholders:
        _LOG.info("%s also holds what was not built: %s", file, ", ".join(state.placeholders))
    with _unfinished(target) as folder:
        variables, layout = _variables(config, state, tuple(trust))
        _check_space(folder, variables)
        meta = {
            "config": configs.to_json(config),
            "vocabulary": _vocabulary(config, entry),
            "imported": {"name": name, "file": os.path.basename(file), "entry": state.within, "layout": layout},
        }
        checkpoint.write_weights(str(folder), variables, meta)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    place = f", entry '{state.within}'" if state.within else ""
    _LOG.info(
        "wrote %s: %s parameters from %s%s, %s layout", target, f"{count:,}", os.path.basename(file), place, layout
    )
    return str(target)


def cached(name: str) -> str:
    """The work directory in the cache that holds published weights; they are fetched and brought in at first use.

    Raises:
      WeightsError: where they cannot be fetched, or are not there yet and this is one of several processes. What
        `import_weights` raises.
    """
    path = _cache(name)
    if distributed.peers() is not None:
        distributed.refuse(
            ""
            if path.exists()
            else f"{name} is not in {path}: bring it in once, maskdit import {name} FILE OUT with an OUT that all "
            "processes can read, such as gs://BUCKET/FOLDER, and name OUT in its place"
        )
    if path.exists():
        return str(path)
    try:
        return import_weights(name)
    except download.DownloadError as error:
        raise WeightsError(f"{error}: maskdit import {name} FILE") from error


def _cache(name: str) -> epath.Path:
    return epath.Path(os.fspath(download.cache_root())) / "weights" / name


def _published(entry: published.Published | None, name: str) -> str:
    """The file of published weights, fetched."""
    if entry is None:
        raise WeightsError(f"{name} is a config: say where the weights are, maskdit import {name} FILE OUT")
    if entry.source is None:
        raise WeightsError(f"{name} has no address to fetch it from: {entry.where}. Then: maskdit import {name} FILE")
    return _file(entry.source, entry)


def _file(source: str, entry: published.Published | None) -> str:
    return str(download.fetch(source, prefer=() if entry is None else entry.prefer))


def _variables(config: ConfigDict, state: State, trust: tuple[str, ...]) -> tuple[PyTree, str]:
    """Parameters and frozen variables as a checkpoint holds them, and the name of the file's layout."""
    if config.get("task") is None:
        module = configs.build(config.tokenizer, trust)
        params, layout = layouts.read(module, layouts.parameter_shapes(module), state)
        return {"params": {"tokenizer": params}, "frozen": {}}, layout
    module = configs.build(config.task.network, trust)
    frozen = {"tokenizer": _tokenizer(config, trust)}  # first: reading it takes more memory than keeping it
    params, layout = layouts.read(module, layouts.parameter_shapes(module), state)
    return {"params": {"network": params}, "frozen": frozen}, layout


def _tokenizer(config: ConfigDict, trust: tuple[str, ...]) -> PyTree:
    """The variables of the tokenizer that a generator's config refers to; the reference is resolved."""
    if not configs.is_reference(config.task.tokenizer) or config.task.tokenizer.source is None:
        raise WeightsError(
            "the tokenizer of this config names no weights: set --config.task.tokenizer to a name that `maskdit import "
            "--list` prints, or to a directory"
        )
    weights = references.weights_of(config, "task.tokenizer")
    shapes = layouts.parameter_shapes(configs.build(config.task.tokenizer, trust))
    leaves = weights.fitting({"params": shapes})
    return jax.tree.map(np.asarray, unflatten_dict(leaves, sep="/"))


def _vocabulary(config: ConfigDict, entry: published.Published | None) -> dict[str, list[str]]:
    """Names of classes: those of ImageNet where the weights are of it, else numbers; files hold no names."""
    classes = {} if config.get("task") is None else config.task.network.classes
    known = entry is not None and set(classes.values()) == {imagenet.CLASSES}
    return {
        name: list(imagenet.class_names()) if known else [str(number) for number in range(count)]
        for name, count in classes.items()
    }


def _refuse_existing(target: epath.Path) -> None:
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise WeightsError(f"cannot write {target}: {error.strerror}; choose another directory") from error
    if taken:
        raise WeightsError(f"{target} is there already: choose another directory, or remove it")


def _check_space(folder: epath.Path, variables: PyTree) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) + _REST
    free = math.inf if "://" in str(folder) else shutil.disk_usage(folder).free
    if free < needed:
        raise WeightsError(
            f"no space in {folder.parent}: the checkpoint takes {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are "
            "free; make some, or choose a directory on another disk"
        )


@contextlib.contextmanager
def _unfinished(target: epath.Path) -> Iterator[epath.Path]:
    """A directory that becomes the target when all has been written to it, and vanishes where something fails."""
    renamed = "://" not in str(target)  # a bucket has no renaming: there Orbax writes last what makes it complete
    folder = target.parent / f".{target.name}.unfinished" if renamed else target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"cannot write {target}: {error.strerror or error}; choose another directory") from error
    complete = False
    try:
        with ending_on_sigterm():
            yield folder
        if renamed:
            if target.exists():
                target.rmdir()  # it is empty
            folder.rename(target)
        complete = True
    finally:
        if not complete and folder.exists():
            folder.rmtree()


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the program as an interrupt from the keyboard does, so that it cleans up behind itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

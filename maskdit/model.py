"""Trained models: `load` one from a work directory, `save` it as a file."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit import references
from maskdit.contracts import ModelError
from maskdit.encoders.model import EncoderModel
from maskdit.tokenizers.model import TokenizerModel, spec_of
from maskdit.training import checkpoint, distributed, model_file
from maskdit.training.mesh import MeshShape, replicated
from maskdit.training.precision import on_this_device

Labels = Mapping[str, str | int | Sequence[str | int]]


def load(path: str, *, ema: str = "default", step: int | str | None = None, trust: Iterable[str] = ()) -> Any:
    """Loads a trained model from its work directory, or published weights by their name.

    Args:
      path: a work directory, local or `gs://`, a file written by `save`, or a name that `maskdit import --list` prints:
        such weights are fetched and brought into `~/.cache/maskdit` (or `$MASKDIT_CACHE`) at first use.
      ema: which average of the weights: `default` (the run's first), the name of another, or `none` for the raw
        weights. A model file holds one set of weights.
      step: which kept checkpoint: its step, or `best`, the one with the best score of those that the run measured
        (`evaluation.scores` of its config); None for the last.
      trust: packages besides `maskdit` whose classes the checkpoint's config may build.

    Returns:
      The model that the run's task makes, such as a `GeneratorModel`, or a `TokenizerModel`, with a copy on every
      device.

    Raises:
      ModelError, CheckpointError, WeightsError: where there is no such checkpoint, average or step; the message names
        those there are.
    """
    everywhere = replicated(MeshShape().make())
    place = functools.partial(jax.tree.map, lambda _: everywhere)
    path = references.find(str(path))
    if path.endswith(".npz") and (ema != "default" or step is not None):
        raise ModelError(f"{path} holds one set of weights: ema and step choose among those of a work directory")
    stored = references.read(path, ema, step, place=place)
    config = configs.from_json(stored.meta["config"])
    if config.get("encoder") is not None:
        return EncoderModel(configs.build(on_this_device(config).encoder, trust), stored.variables, config)
    if config.get("task") is None:
        tokenizer = configs.build(on_this_device(config).tokenizer, trust)
        step = stored.meta.get("step") or None  # imported weights are of no step
        return TokenizerModel(tokenizer, stored.variables, config, ema=stored.ema, step=step)
    task = configs.build(on_this_device(config).task, trust, horizon=config.horizon)
    model = task.model(stored.variables, {k: tuple(v) for k, v in stored.meta["vocabulary"].items()})
    if isinstance(model, TokenizerModel):
        config = ConfigDict({"tokenizer": spec_of(model.tokenizer)})
        return dataclasses.replace(model, config=config, ema=stored.ema, step=stored.meta.get("step"))
    parts = {key: configs.build(config[key], trust) for key in ("sampler", "guidance") if config.get(key) is not None}
    return dataclasses.replace(model, config=config, ema=stored.ema, step=stored.meta.get("step"), **parts)


def save(model: Any, path: str, dtype: str = "float32") -> None:
    """Writes a loaded model into one `.npz` file, which `load` reads.

    Args:
      model: what `load` returned.
      path: ends in `.npz`.
      dtype: of the file's floating-point arrays; `float16` halves it.

    Raises:
      ModelError: for a path of another kind.
    """
    if not str(path).endswith(".npz"):
        raise ModelError(f"a model file ends in .npz, got {path}")
    averages = [] if model.ema == "none" else [model.ema]
    meta = {"config": configs.to_json(model.config), "vocabulary": model.vocabulary, "ema": averages}
    if model.step is not None:
        meta["step"] = model.step
    if distributed.is_first():
        model_file.write(path, checkpoint.Stored(model.variables, meta), dtype)
    distributed.barrier()

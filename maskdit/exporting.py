"""`maskdit export`: weights of ours in the layout that others load."""

import json
import logging
import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from maskdit.encoders.model import EncoderModel
from maskdit.interop import layouts, torch_save
from maskdit.interop.atomic import written_whole
from maskdit.model import load
from maskdit.references import WeightsError
from maskdit.tokenizers.quantize.ema import EMAVQ, as_vq

_LOG = logging.getLogger(__name__)
_DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
_SUFFIXES = (".safetensors", ".pt")
PARTS = ("network", "tokenizer", "encoder")


def export_weights(
    source: str,
    out: str,
    *,
    layout: str = "reference",
    part: str | None = None,
    ema: str = "default",
    step: int | str | None = None,
    trust: Iterable[str] = (),
) -> str:
    """Writes the network, tokenizer or encoder of a checkpoint as a published state dict.

    Args:
      source: a work directory, a model file, or the name of published weights.
      out: a `.safetensors` file or a `.pt` file for `torch.load`; or, for a layout that has a configuration of its own
        (diffusers), a folder for both.
      layout: a name of `maskdit.interop.layouts.layouts`: `reference`, that of the paper's own code, or `diffusers`.
      part: `network`, `tokenizer` or `encoder`; None for the network where there is one.
      ema, step, trust: see `maskdit.load`.

    Returns:
      The file.

    Raises:
      WeightsError, ModelError, CheckpointError, ValueError: where there is no such checkpoint, part or layout, the
        model has what the layout cannot say, or the file cannot be written.
    """
    module, params = _part(load(source, ema=ema, step=step, trust=trust), part, source)
    chosen = layouts.named(module, layout)
    target, described = epath.Path(out), chosen.config and chosen.config(module)
    if target.suffix not in _SUFFIXES:
        if described is None:
            suffixes = " or ".join(_SUFFIXES)
            raise WeightsError(f"the {layout} layout is one file: give a name that ends in {suffixes}, got {out}")
        target = target / _DIFFUSERS_FILE
    beside = target.parent / "config.json" if described is not None and target.name == _DIFFUSERS_FILE else None
    for path in (target, beside):
        if path is not None and path.exists():
            raise WeightsError(f"{path} is there already: choose another place, or remove it")
    state = layouts.write(module, jax.device_get(params), layout)
    _write(target, state)
    if beside is not None:
        beside.write_text(json.dumps(described, indent=2) + "\n")
    _LOG.info("wrote %s: %d tensors, %s layout", target, len(state), layout)
    return str(target)


def _part(model: Any, part: str | None, source: str) -> tuple[Any, Any]:
    """The module and its parameters."""
    task = getattr(model, "task", None)
    parts: dict[str, tuple[Any, Any]] = {}
    if task is not None and hasattr(task, "network"):
        parts["network"] = task.network, model.variables["params"]["network"]
        if "tokenizer" in model.variables["frozen"]:
            parts["tokenizer"] = _with_parameters(task.tokenizer, model.variables["frozen"]["tokenizer"])
    elif isinstance(model, EncoderModel):
        parts["encoder"] = model.encoder, model.variables["params"]["encoder"]
    elif task is None:
        parts["tokenizer"] = _with_parameters(model.tokenizer, model.own)
    if part is not None and part not in parts:
        raise WeightsError(f"{source} has no {part} to export; it has: {', '.join(parts) or 'neither'}")
    return parts[part or next(iter(parts))]


def _with_parameters(tokenizer: Any, variables: Any) -> tuple[Any, Any]:
    """A tokenizer and its parameters; published layouts have codes among them, averaged ones too."""
    params = variables.get("params", {})
    if isinstance(getattr(tokenizer, "quantize", None), EMAVQ):
        quantizer, codes = as_vq(tokenizer.quantize, variables["state"]["quantize"])
        tokenizer, params = tokenizer.clone(quantize=quantizer), {**params, "quantize": codes}
    return tokenizer, params


def _write(target: epath.Path, state: dict[str, np.ndarray]) -> None:
    """Writes a file of the kind that its name says, whole or not at all."""
    try:
        with written_whole(target) as unfinished:
            if target.suffix == ".pt":
                torch_save.write(unfinished, state)
            else:
                contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in state.items()}
                save_file(contiguous, os.fspath(unfinished), metadata={"format": "pt"})
                os.chmod(unfinished, 0o644)  # safetensors lets only the owner read
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise WeightsError(f"could not write {target}: {reason}; free some space, or choose another place") from error

"""Weights in one `.npz` file, for those that are shipped or sent; `maskdit.training.checkpoint` reads directories."""

import json

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from maskdit.training.checkpoint import Stored, told


def write(path: str, stored: Stored, dtype: str = "float32") -> None:
    """Writes what `maskdit.training.checkpoint.read` gives into one `.npz` file.

    Args:
      path: ends in `.npz`.
      stored: variables and meta data.
      dtype: of the file's floating-point arrays; `float16` halves it.

    Raises:
      CheckpointError: where it cannot be written.
    """
    flat = traverse_util.flatten_dict(jax.device_get(stored.variables), sep="/")
    small = {k: v.astype(dtype) if np.issubdtype(v.dtype, np.floating) else v for k, v in flat.items()}
    meta = np.frombuffer(json.dumps(stored.meta).encode(), np.uint8)
    with told(f"could not write {path}"), epath.Path(path).open("wb") as file:
        np.savez_compressed(file, **small, meta=meta)


def read(path: str) -> Stored:
    """Reads a file of `write`; floating-point arrays come back as float32, on the host.

    Raises:
      CheckpointError: for a file of another kind.
    """
    with told(f"{path} is no model file"), epath.Path(path).open("rb") as file:
        arrays = dict(np.load(file))
        meta = json.loads(arrays.pop("meta").tobytes())
    full = {k: v.astype(np.float32) if np.issubdtype(v.dtype, np.floating) else v for k, v in arrays.items()}
    variables = traverse_util.unflatten_dict(full, sep="/")
    return Stored({"params": {}, "frozen": {}, "state": {}, **variables}, meta, next(iter(meta["ema"]), "none"))

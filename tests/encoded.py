"""Small things to encode: a tokenizer of a few thousand parameters, a folder of pictures."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from maskdit import config
from maskdit.tokenizers.pixels import to_float
from maskdit.tokenizers.vae import VAE
from maskdit.training import checkpoint, model_file
from maskdit.training.mesh import unboxed

TINY = {"channels": (8, 16), "layers_per_block": 1, "groups": 4, "latent_channels": 2}


@functools.cache
def variables(seed: int = 0):
    """Of the tiny VAE."""
    made = jax.jit(VAE(**TINY).init)(jax.random.key(seed), jnp.zeros((1, 16, 16, 3)))
    return jax.tree.map(np.asarray, unboxed(made))


@jax.jit
def moments(images):
    """What the tiny VAE makes of uint8 images."""
    return VAE(**TINY).apply(variables(), to_float(images), method="encode").aux["moments"]


def write_tokenizer(path: pathlib.Path, given=None, spec=None) -> str:
    """A checkpoint of the tiny VAE, or of another tokenizer, with these variables."""
    given = variables() if given is None else given
    entry = config.spec(VAE, **TINY) if spec is None else spec
    meta = {"config": config.to_json(ConfigDict({"tokenizer": entry})), "vocabulary": {}, "ema": []}
    model_file.write(str(path), checkpoint.Stored({"params": {"tokenizer": given["params"]}, "frozen": {}}, meta))
    return str(path)


def write_pictures(folder: pathlib.Path, count: int = 23, size: int = 16, broken: tuple[int, ...] = ()) -> str:
    """`count` pictures in two class folders, record i the i-th; those in `broken` cannot be read."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("a" if i < count // 2 else "b") / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(path)
        if i in broken:
            path.write_bytes(b"no picture")
    return str(folder)

"""What of a tokenizer's latents is stored of a data set, the program that makes it, and the parameters it reads."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from maskdit.contracts import Array, Latents, PyTree
from maskdit.references import checksum
from maskdit.tokenizers.pixels import to_float
from maskdit.training import placement
from maskdit.training.mesh import applied, batch_sharding, replicated


def stored(tokenizer: Any, latents: Latents) -> tuple[str, Array]:
    """Name and array of what belongs on disk: `ids`, else the posterior's `moments`, else the latents' `values`."""
    if latents.ids is not None:
        return "ids", latents.ids
    if "moments" in latents.aux and hasattr(tokenizer, "posterior"):
        return "moments", latents.aux["moments"]
    assert latents.values is not None
    return "values", latents.values


def stored_shape(tokenizer: Any, variables: PyTree, size: int) -> tuple[str, tuple[int, ...]]:
    """Name, and shape of one image's array, for images of a side."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    latents = jax.eval_shape(lambda v, x: tokenizer.apply(v, x, method="encode"), _shapes(variables), image)
    name, array = stored(tokenizer, latents)
    return name, tuple(array.shape[1:])


def encoder_variables(tokenizer: Any, variables: PyTree, size: int) -> PyTree:
    """Those of a tokenizer's variables that what is stored depends on; found by tracing `encode`.

    Args:
      tokenizer: the module.
      variables: its variables by collection.
      size: side of the images.
    """
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda v, x: stored(tokenizer, tokenizer.apply(v, x, method="encode"))[1])
    program = traced(_shapes(variables), image).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    leaves, tree = jax.tree.flatten(variables)
    marks = jax.tree.unflatten(tree, used[: len(leaves)])  # the image comes after the variables
    flat = traverse_util.flatten_dict(variables)
    kept = {path: flat[path] for path, mark in traverse_util.flatten_dict(marks).items() if mark}
    return traverse_util.unflatten_dict(kept)


def encoder_checksum(tokenizer: Any, variables: PyTree, size: int) -> str:
    """A checksum of what `encode` reads: another decoder has no part in it."""
    return checksum(encoder_variables(tokenizer, variables, size))


class Encoder:
    """A tokenizer's encoder on the devices of this process: uint8 images in, what is stored of them out.

    Args:
      tokenizer: the module.
      variables: its variables by collection.
      devices: a mesh of devices of this process; each computes rows of its own.
      dtype: of what comes out.
      flips: whether the mirror images are encoded too.
    """

    def __init__(self, tokenizer: Any, variables: PyTree, devices: Mesh, dtype: str, flips: bool):
        self._tokenizer, self._devices, self._dtype = tokenizer, devices, dtype
        self._variables = placement.spread(variables, replicated(devices))
        self._turns = (np.False_, np.True_) if flips else (np.False_,)

    def __call__(self, images: np.ndarray) -> list[Array]:
        """Starts to encode `[B, H, W, 3]`, B divided by the mesh; gives `[B, ...]` for each copy, not awaited."""
        with applied(self._devices):
            rows = placement.spread(images, batch_sharding(self._devices))
            how: dict[str, Any] = {"tokenizer": self._tokenizer, "dtype": self._dtype}
            return [_encode(self._variables, rows, turn, **how) for turn in self._turns]


@functools.partial(jax.jit, static_argnames=("tokenizer", "dtype"))
def _encode(variables: PyTree, images: Array, mirrored: Array, *, tokenizer: Any, dtype: str) -> Array:
    # one program for both copies: a second one would be compiled as long
    x = to_float(jnp.where(mirrored, images[:, :, ::-1], images))
    return stored(tokenizer, tokenizer.apply(variables, x, method="encode"))[1].astype(dtype)


def _shapes(variables: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)

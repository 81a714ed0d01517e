"""Random numbers by name.

Everything random in the library takes a draw, never a bare key. A draw gives arrays by name; names are folded into the
key, so the order of calls does not matter and a new name changes no other. `at(i)` folds in an index: the training
step, the step of a sampler, or, with a vector, the place of each row in the global batch or the number of each sample.
Rows are therefore drawn alike for any batch size, microbatch, host or mesh.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


class RepeatedDraw(ValueError):
    """One draw was asked for the same name twice."""


@jax.tree_util.register_pytree_node_class
class Draw:
    """Named random arrays from one key, or from one key per row.

    With a scalar key `normal(name, shape)` draws the whole shape. With keys `[B]`, made by `at(rows)`, the shape must
    begin with B and row i is drawn from key i alone.

    Raises:
      RepeatedDraw: where one draw is asked for a name twice.
      ValueError: where a shape does not begin with the number of rows.
    """

    def __init__(self, key: Array | int):
        self.key = jax.random.key(key) if isinstance(key, int) else key
        self._used: set[str] = set()

    def tree_flatten(self) -> tuple[tuple[Array], None]:
        """A draw is a pytree: it travels through loops of a traced program."""
        return (self.key,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any]) -> "Draw":
        """The draw again, with no name used."""
        draw = cls.__new__(cls)
        draw.key, draw._used = children[0], set()
        return draw

    def _named(self, name: str) -> Array:
        if name in self._used:
            raise RepeatedDraw(f"'{name}' was drawn twice from one draw: use another name, or at(index)")
        self._used.add(name)
        return _fold(self.key, zlib.crc32(name.encode()))

    def _draw(self, sampler: Any, name: str, shape: tuple[int, ...]) -> Array:
        key = self._named(name)
        if key.ndim == 0:
            return sampler(key, tuple(shape))
        if not shape or shape[0] != key.shape[0]:
            raise ValueError(f"draw '{name}' has {key.shape[0]} rows but was asked for shape {tuple(shape)}")
        return jax.vmap(lambda k: sampler(k, tuple(shape[1:])))(key)

    def normal(self, name: str, shape: tuple[int, ...]) -> Array:
        """Standard normal numbers, float32."""
        return self._draw(jax.random.normal, name, shape)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Array:
        """Numbers uniform in [0, 1), float32."""
        return self._draw(jax.random.uniform, name, shape)

    def integers(self, name: str, shape: tuple[int, ...], low: int, high: int) -> Array:
        """Integers uniform in [low, high), int32."""
        return self._draw(lambda key, s: jax.random.randint(key, s, low, high), name, shape)

    def bits(self, name: str, shape: tuple[int, ...]) -> Array:
        """Uniform random bits, uint32."""
        return self._draw(lambda key, s: jax.random.bits(key, s), name, shape)

    def at(self, index: Any) -> "Draw":
        """The draw of one index, or, with a vector `[B]`, of B rows; the index may be traced."""
        index = jnp.asarray(index, jnp.uint32)
        if index.ndim == 0:
            return Draw(_fold(self.key, index))
        if self.key.ndim != 0:
            raise ValueError("this draw already has rows: take at(rows) once")
        return Draw(jax.vmap(lambda i: jax.random.fold_in(self.key, i))(index))

    def named(self, name: str) -> "Draw":
        """A draw of its own for a part of the program."""
        return Draw(self._named(name))

    def init_key(self, name: str) -> Array:
        """A bare key for a linen initialiser."""
        return self._named(name)


def _fold(key: Array, data: Any) -> Array:
    if key.ndim == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(lambda k: jax.random.fold_in(k, data))(key)

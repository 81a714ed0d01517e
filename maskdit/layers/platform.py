"""The platform that a program is traced for, where layers choose kernels and dtypes by it."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

PLATFORMS = ("cpu", "gpu", "tpu")
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("maskdit_platform", default=None)


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Traces layers for another platform than this machine's, such as for a TPU topology on a CPU.

    The switch is read while a function is traced. Enter it around `jax.jit(f).lower(...)`, or inside `f`: a program
    traced before is reused as it is.

    Raises:
      ValueError: for another name than `cpu`, `gpu` and `tpu`.
    """
    if name not in PLATFORMS:
        raise ValueError(f"there is no platform '{name}': use one of {PLATFORMS}")
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: what `compiling_for` says, else what this process computes on."""
    return _target.get() or jax.default_backend()

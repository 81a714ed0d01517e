"""The switch between hand-written and plain gradients.

A few layers (`linear`, `modulate`) carry a hand-written reverse-mode gradient because it is faster on a CPU than the
derived one: sums over rows as products with ones. Compilers for TPUs fuse the derived sums into their neighbours, and
by their estimate the hand-written ones cost a tenth of a step there, so other platforms get the plain operations.
Functions with a gradient of their own have no forward mode. Inside `plain_gradients()` all layers are traced from plain
operations, which `jax.jvp` can follow.
"""

import contextlib
import contextvars
from collections.abc import Iterator

from maskdit.layers.platform import platform

_plain = contextvars.ContextVar("maskdit_plain_gradients", default=False)


@contextlib.contextmanager
def plain_gradients() -> Iterator[None]:
    """Traces layers without hand-written gradients, as `jax.jvp` needs.

    The switch is read while a function is traced. Enter it inside the function given to `jax.jit`: a program compiled
    before is reused as it is.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def plain() -> bool:
    """Whether layers are being traced so that `jax.jvp` can follow."""
    return _plain.get()


def by_hand() -> bool:
    """Whether layers are being traced with the gradients that are written for a CPU."""
    return not plain() and platform() == "cpu"

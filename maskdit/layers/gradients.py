"""The switch between hand-written and plain gradients.

A few layers (`linear`, `modulate`) carry a hand-written reverse-mode gradient because it is faster than the derived
one. Such functions have no forward mode. Inside `plain_gradients()` the same layers are traced from plain operations,
which `jax.jvp` can follow.
"""

import contextlib
import contextvars
from collections.abc import Iterator

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
    """Whether layers are being traced without hand-written gradients."""
    return _plain.get()

"""Writing a file or directory whole or not at all, whatever ends the program meanwhile."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from etils import epath


@contextlib.contextmanager
def written_whole(target: epath.Path) -> Iterator[epath.Path]:
    """A path to write to, which becomes the target at the end of the block; where it fails, nothing is left.

    Until then it lies in a folder of its own beside the target, so that two processes do not meet. A bucket has no
    renaming: there the path is the target, and is removed after a failure.

    Raises:
      OSError: where the target cannot be made, or another process has made it meanwhile.
    """
    if "://" in str(target):
        with _removed_unless_complete(target), ending_on_sigterm():
            yield target
        return
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ending_on_sigterm():
            scratch = tempfile.mkdtemp(prefix=f".{target.name}.unfinished-", dir=target.parent)
            try:
                yield epath.Path(scratch) / target.name
                os.replace(os.path.join(scratch, target.name), target)  # over an empty directory too, no other
            finally:
                shutil.rmtree(scratch)
    finally:
        for folder in missing:  # those that this made and left empty
            with contextlib.suppress(OSError):
                os.rmdir(folder)


@contextlib.contextmanager
def _removed_unless_complete(target: epath.Path) -> Iterator[None]:
    complete = False
    try:
        yield
        complete = True
    finally:
        if not complete and target.exists():
            target.rmtree() if target.is_dir() else target.unlink()


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the program as an interrupt from the keyboard does, so that it cleans up behind itself."""

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    with _handling(end, signal.SIGTERM):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that end the program wait for the end of the block: for threads that would go on writing."""
    came: list[int] = []
    with _handling(lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    if came:
        signal.raise_signal(came[0])


@contextlib.contextmanager
def _handling(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Another handler of signals, in the main thread, which alone can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)

"""When a run stops before its end: SIGTERM or SIGINT to any of its processes, or a notice of the platform to JAX."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from typing import Any

from jax.experimental import multihost_utils

from maskdit.training import distributed

_runs = itertools.count()


class Stop:
    """Whether a run is to stop, asked once after each step; processes agree on the step without waiting for each other.

    A process that is alone stops after the step in which the signal came. Of several each says which step it has
    reached, and all stop after the one that follows the latest.
    """

    def __init__(self, step: int):
        self._came: list[int] = []
        self._step, self._last = step, -1
        self._others = distributed.peers()
        self._key = f"stop/{next(_runs)}"
        self._told, self._agreed = False, False
        self._lock = threading.Lock()

    def after(self, step: int) -> bool:
        """Whether to stop now that so many steps are done."""
        if self._others is None:
            return bool(self._came)
        if self._came and not self._told:
            self._told = True
            self._others.put(f"{self._key}/asked/{self._others.index}", "")
        with self._lock:  # held while processes agree: what this one said it had reached stays true
            self._step = step
            return step == self._last or multihost_utils.reached_preemption_sync_point(step)

    def signalled(self, number: int, _: Any) -> None:
        """Handles a signal; the second one ends the process at once."""
        if self._came:
            raise KeyboardInterrupt
        self._came.append(number)

    def agree(self) -> None:
        """Where a process has asked to stop: finds the step that all can stop after. Called by the peers' thread."""
        assert self._others is not None
        if self._agreed or not self._others.under(f"{self._key}/asked"):
            return
        with self._lock:
            self._others.put(f"{self._key}/at/{self._others.index}", str(self._step))
            reached = [int(self._others.get(f"{self._key}/at/{process}")) for process in range(self._others.count)]
            self._last, self._agreed = max(reached) + 1, True


@contextlib.contextmanager
def stopping(step: int) -> Iterator[Stop]:
    """Watches for signals while a run goes on from a step."""
    stop, others = Stop(step), distributed.peers()
    if others is not None:
        others.watching.append(stop.agree)
    previous = {number: signal.signal(number, stop.signalled) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            # None stands for JAX's own handler, which Python cannot put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

"""A running stream of batches."""

import logging
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from maskdit.data.source import DataError

Batch = dict[str, Any]
_LOG = logging.getLogger(__name__)


class Batches(Iterator[Batch]):
    """Batches made ahead by threads or worker processes; begins at once. Unreadable records are logged, each once.

    Close it, or use it in a `with` statement; before an `os._exit` above all, which worker processes would outlive.
    """

    def __init__(self, stream: Any, shared: bool, saying: str):
        self._streams, self._shared, self._saying = [stream], shared, saying
        self._named: set[str] = set()
        self._end = weakref.finalize(self, _close, self._streams)  # also when lost, and at the interpreter's exit
        stream.start_prefetch()

    def __next__(self) -> Batch:
        if not self._streams:
            raise StopIteration
        made = next(self._streams[0])
        if made["error"]:
            self.close()
            raise DataError(made["error"])
        for name in made["unreadable"]:
            if name not in self._named:
                self._named.add(name)
                _LOG.warning(self._saying, name)
        if not self._shared:
            return made["batch"]
        # out of the memory shared with the worker: it goes away with the array, and a device may alias the array
        return {name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in made["batch"].items()}

    def close(self) -> None:
        """Ends the threads or worker processes."""
        self._end()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _close(streams: list[Any]) -> None:
    while streams:
        streams.pop().close()

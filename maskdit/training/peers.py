"""The other processes of a job while it runs: one that fails tells the others why, one that falls silent is missed.

Processes talk through the key-value store of JAX's coordination service, which the first process serves. A collective
whose peer has died waits for ever, so every process has a thread beside its work, which says every second that this
process lives and hears what a failing one says. The service's own heartbeats, which need no Python, are the second net.
"""

import atexit
import contextlib
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

_BEAT = 1.0
_DAY = 24 * 3600 * 1000
"""Milliseconds for which calls wait that end early where a peer dies."""
_FAREWELL = 300_000


class Peers:
    """All processes of this job, seen from one of them.

    Attributes:
      index: this process.
      count: of processes.
      watching: functions that the thread beside the work calls every second.
    """

    def __init__(self, client: Any, index: int, count: int, patience: float):
        self.index, self.count = index, count
        self.watching: list[Callable[[], None]] = []
        self._client, self._patience = client, patience
        self._failed, self._ending = threading.Event(), threading.Event()
        self.put(f"host/{index}", socket.gethostname())
        self._thread = threading.Thread(target=self._watch, name="maskdit-peers", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)  # runs before JAX's own farewell, which it registered at import

    def name(self, process: int) -> str:
        """`process 1 (HOST)`."""
        return f"process {process} ({self.get(f'host/{process}')})"

    def get(self, key: str) -> str:
        """A value that some process sets sooner or later."""
        return self._client.blocking_key_value_get(f"maskdit/{key}", _DAY)

    def put(self, key: str, value: str) -> None:
        """Sets a value, once."""
        self._client.key_value_set(f"maskdit/{key}", value)

    def under(self, folder: str) -> dict[str, str]:
        """The values set so far whose keys begin with `FOLDER/`, by the rest of the key."""
        found = self._client.key_value_dir_get(f"maskdit/{folder}/")
        return {key.rpartition(f"{folder}/")[2]: value for key, value in found}

    def wait(self, name: str) -> None:
        """Waits until all processes are here."""
        self._client.wait_at_barrier(f"maskdit/{name}", _DAY)

    def end(self, sentence: str, dead: int = 0) -> NoReturn:
        """Ends this process with a sentence and exit code 1; the others hear it and end too, saying it.

        So many of them are `dead`: these are not waited for.
        """
        self._failed.set()
        with contextlib.suppress(Exception):  # nobody is there to hear it
            self.put(f"failed/{self.index}", sentence)
        self._leave(sentence, dead)

    def silent(self) -> list[str]:
        """Names of the processes of which nothing is heard for some seconds; where one says why it failed, this process
        ends in that time, saying it."""
        before = self.under("beat")
        time.sleep(6 * _BEAT)
        now = self.under("beat")
        return [
            self.name(process) for process in range(self.count) if now.get(str(process)) == before.get(str(process))
        ]

    def _leave(self, sentence: str, dead: int = 0) -> NoReturn:
        """Ends this process; without JAX's farewell, which waits for peers that will not come."""
        print(f"maskdit: {sentence}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            self.put(f"left/{self.index}", "")
        end = time.monotonic() + 10 * _BEAT
        # what the others are to hear goes away with the first process
        while self.index == 0 and time.monotonic() < end:
            with contextlib.suppress(Exception):
                if len(self.under("left")) >= self.count - dead:
                    break
            time.sleep(0.1)
        for worker in multiprocessing.active_children():  # of the loader, which would outlive this process
            worker.kill()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(1)

    def _watch(self) -> None:
        begin = time.monotonic()
        seen = dict.fromkeys(map(str, range(self.count)), ("", begin))
        beat = 0
        while not self._ending.wait(_BEAT):
            late, begin, beat = time.monotonic() - begin > 5 * _BEAT, time.monotonic(), beat + 1
            try:
                self._client.key_value_set(f"maskdit/beat/{self.index}", str(beat), allow_overwrite=True)
                said = self.under("failed")
                beats = self.under("beat") if self.index == 0 else {}
                for function in list(self.watching):
                    function()
            except Exception as error:
                if not self._ending.is_set() and not self._failed.is_set():
                    self._leave(f"the first process cannot be reached any more ({str(error).splitlines()[0]})")
                return
            if self._failed.is_set():
                continue  # the thread that failed says why
            for process, sentence in said.items():
                self._leave(f"{self.name(int(process))} stopped: {sentence}")
            for process, now in beats.items():
                before, since = seen[process]
                # where this process itself slept, nobody else was silent
                seen[process] = (now, begin if late or now != before else since)
            silent = [process for process, (_, since) in seen.items() if begin - since > self._patience]
            if self.index == 0 and silent:
                sentence = (
                    f"nothing was heard of {', '.join(self.name(int(process)) for process in silent[:8])} for "
                    f"{self._patience:.0f} s: dead, or cut off. See its log, and start the job again: a run goes on "
                    "from its last checkpoint"
                )
                self.end(sentence, dead=len(silent))

    def _at_exit(self) -> None:
        error = getattr(sys, "last_value", None)  # what ended the program, where an error did
        if error is not None:
            self.end(f"{type(error).__name__}: {error}")
        try:
            self._client.wait_at_barrier("maskdit/end", _FAREWELL)
        except Exception:
            self._leave(f"the other processes did not end within {_FAREWELL // 60_000} minutes")
        self._ending.set()
        self._thread.join()  # a thread that outlives the interpreter takes it down

"""Starts several real processes as one job, each with virtual CPU devices of its own."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib

ROOT = pathlib.Path(__file__).parent.parent
PATIENCE = 12


@dataclasses.dataclass
class Job:
    """Processes that run."""

    processes: list[subprocess.Popen]
    logs: list[pathlib.Path]
    begin: float

    def wait(self, seconds: float = 400) -> "list[Ended]":
        """Waits for all to end; those that do not are killed, with their words in the error."""
        try:
            codes = [p.wait(max(0.1, self.begin + seconds - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            self.kill()
            said = "\n".join(f"--- process {i}\n{self.said(i)[-3000:]}" for i in range(len(self.logs)))
            raise AssertionError(f"still running after {seconds} s:\n{said}") from None
        ended = [Ended(code, self.said(i)) for i, code in enumerate(codes)]
        shutil.rmtree(self.logs[0].parent)
        return ended

    def said(self, process: int) -> str:
        """What a process has printed so far."""
        return self.logs[process].read_text()

    def kill(self) -> None:
        """Kills all."""
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


@dataclasses.dataclass
class Ended:
    """A process that ended: its exit code, and what it printed, both streams together."""

    code: int
    said: str


def start(
    arguments: list[str], count: int = 2, devices: int = 4, *, only: list[int] | None = None, **environment: str
) -> Job:
    """Starts `python ARGUMENTS` so many times, as the processes of one job.

    Args:
      arguments: of Python, such as `["-c", SNIPPET]` or `["-m", "maskdit.cli", "train", ...]`. `{process}` in them is
        replaced by the number of the process.
      count: of processes; 1 starts one that is alone.
      devices: virtual devices of each.
      only: those to start, where some are to be missing.
      **environment: variables to set besides.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="maskdit-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    processes, logs = [], []
    for process in range(count) if only is None else only:
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "MASKDIT_PATIENCE": str(PATIENCE), "PYTHONUNBUFFERED": "1"}
        variables["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"])
        if count > 1:
            job = {"MASKDIT_COORDINATOR": address, "MASKDIT_PROCESSES": count, "MASKDIT_PROCESS": process}
            variables |= {name: str(value) for name, value in job.items()}
        logs.append(folder / f"{process}.log")
        with logs[-1].open("w") as out:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *(a.replace("{process}", str(process)) for a in arguments)],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=variables | environment,
                    cwd=ROOT,
                )
            )
    return Job(processes, logs, time.monotonic())


def run(arguments: list[str], count: int = 2, devices: int = 4) -> list[Ended]:
    """Starts a job and waits for its end."""
    return start(arguments, count, devices).wait()


@contextlib.contextmanager
def fed_rows(path):
    """While inside, a run writes to `PATH.PROCESS` which rows it feeds to its devices: `[step, [[row, crc], ...]]`."""
    import jax

    from maskdit import train as loop

    original = loop._Programs.__call__

    def call(self, step, state, batch):
        rows = [
            (int(row), zlib.crc32(image.tobytes())) for row, image in zip(batch["row"], batch["image"], strict=True)
        ]
        with open(f"{path}.{jax.process_index()}", "a") as file:
            file.write(json.dumps([step, rows]) + "\n")
        return original(self, step, state, batch)

    loop._Programs.__call__ = call
    try:
        yield
    finally:
        loop._Programs.__call__ = original

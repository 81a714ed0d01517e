"""The driver: starts the workers, runs the phases that fit into the budget, writes down what they found."""

import contextlib
import dataclasses
import json
import pathlib
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from maskdit.performance.gpu.plan import Plan, Workload

Found = dict[str, Any]
OURS, TORCH = "ours", "torch"
LEAST_WAIT = 20.0
"""Seconds that an answer is waited for in any case."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the run.

    Attributes:
      name: under which its line is written.
      seconds: about how long it takes; it starts only where so much is left.
      run: does it, and gives what it found.
      needs: workers without which it says nothing.
    """

    name: str
    seconds: float
    run: Callable[["Bench"], Found]
    needs: tuple[str, ...] = (OURS,)


class Worker:
    """A process that answers JSON lines. Once it has died or been silent for too long every answer is an error."""

    def __init__(self, name: str, command: Sequence[str], log: pathlib.Path, environment: Mapping[str, str]):
        self.name, self.log = name, log
        self.fault = ""
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(environment)
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, do: str, fields: Mapping[str, Any], timeout: float) -> Found:
        """The answer to a request; `{"error": sentence}` where there is none."""
        if self.fault:
            return {"error": self.fault}
        try:
            print(json.dumps({"do": do, **fields}), file=self._process.stdin, flush=True)
            line = self._lines.get(timeout=max(timeout, 1))
        except OSError:  # the pipe is broken
            line = None
        except queue.Empty:
            self._process.kill()
            self.fault = f"the {self.name} worker did not answer '{do}' within {timeout:.0f} s"
            return {"error": self.fault}
        if line is None:
            self.fault = f"the {self.name} worker ended during '{do}' ({self._last_words()})"
            return {"error": self.fault}
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):  # what it never read
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=10)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        try:
            code: int | str = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = "killed"
        said = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"exit code {code}" + (f": {said[-1][:200]}" if said else "")


@dataclasses.dataclass
class Bench:
    """A run: what phases need.

    Attributes:
      plan: the workloads.
      workers: by name, `ours` and, with peers, `torch`.
      out: folder of the results.
      scratch: folder for what is not kept.
      end: when the budget is spent, by `time.monotonic`.
      found: what each phase found so far.
    """

    plan: Plan
    workers: dict[str, Worker]
    out: pathlib.Path
    scratch: pathlib.Path
    end: float
    found: dict[str, Found] = dataclasses.field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()

    def has(self, name: str) -> bool:
        """Whether there is such a worker, and it lives."""
        return name in self.workers and not self.workers[name].fault

    def ask(self, name: str, do: str, work: Workload | None = None, **fields: Any) -> Found:
        """A worker's answer; one that takes half of what is left is given up, so that others get their turn."""
        if name not in self.workers:
            return {"error": f"there is no {name} worker"}
        given = fields if work is None else {"workload": dataclasses.asdict(work), **fields}
        return self.workers[name].ask(do, given, max(self.left / 2, LEAST_WAIT))


def drive(
    plan: Plan,
    phases: Sequence[Phase],
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]],
    out: pathlib.Path,
    budget: float,
    say: Callable[[str], None] = print,
) -> dict[str, Found]:
    """Runs phases in order; gives what each found, in the order of the lines in `out/result.jsonl`.

    Time for the last phase is kept back: it tells whether the first figures still hold.

    Args:
      plan: the workloads.
      phases: what to do.
      commands: worker's name -> command line and environment.
      out: folder of the results; made.
      budget: seconds for everything, workers' start included.
      say: told a line for each phase.
    """
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    result = out / "result.jsonl"
    result.write_text("")
    with tempfile.TemporaryDirectory(prefix="maskdit-gpu-") as scratch, _started(commands, out) as workers:
        bench = Bench(plan, workers, out, pathlib.Path(scratch), begin + budget)
        for phase in phases:
            line: Found = {"phase": phase.name, "at": round(time.monotonic() - begin, 1)}
            if why := _obstacle(phase, phases[-1], bench):
                line["skipped"] = why
            else:
                started = time.monotonic()
                try:
                    line |= phase.run(bench)
                except Exception as error:  # a reply that is not what the phase expected: the others go on
                    line["error"] = f"{type(error).__name__}: {error}"
                line["took"] = round(time.monotonic() - started, 1)
            bench.found[phase.name] = line
            with result.open("a") as file:
                print(json.dumps(line), file=file)
            say(_summary(line))
        return bench.found


@contextlib.contextmanager
def _started(
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], out: pathlib.Path
) -> Iterator[dict[str, Worker]]:
    workers = {
        name: Worker(name, command, out / f"{name}.log", environment)
        for name, (command, environment) in commands.items()
    }
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def _obstacle(phase: Phase, last: Phase, bench: Bench) -> str:
    """Why a phase cannot run; empty where it can."""
    for name in phase.needs:
        if name not in bench.workers:
            return f"there is no {name} worker" + (" (--peers names the peers' code)" if name == TORCH else "")
        if fault := bench.workers[name].fault:
            return fault
    kept = 0.0 if phase is last else last.seconds
    if phase.seconds + kept > bench.left:
        after = f" and {kept:.0f} s for '{last.name}'" if kept else ""
        return f"needs about {phase.seconds:.0f} s{after}, and {max(bench.left, 0):.0f} s are left"
    return ""


def _summary(line: Found) -> str:
    """A line for the eye; all figures are in the table at the end."""
    if "skipped" in line:
        return f"{line['at']:6.0f} s  {line['phase']}: skipped, {line['skipped']}"
    faults = sorted(set(errors(line)))
    told = f"; {len(faults)} failed: {faults[0]}" if faults else ""
    return f"{line['at']:6.0f} s  {line['phase']}: {line['took']:.1f} s{told}"


def errors(found: Any) -> Iterator[str]:
    """All errors inside what a phase found."""
    if isinstance(found, Mapping):
        if isinstance(found.get("error"), str):
            yield found["error"]
        for value in found.values():
            yield from errors(value)
    elif isinstance(found, list):
        for value in found:
            yield from errors(value)

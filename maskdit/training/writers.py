"""The files and services that a run's log goes to: `metrics.jsonl`, TensorBoard, Weights & Biases."""

import errno
import json
import math
import os
import pathlib
import tempfile
import time
import uuid
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath


class LogError(ValueError):
    """A log that cannot be written as asked; the message says what to do."""


class Jsonl:
    """`metrics.jsonl`: one JSON object for each step, `{"step": ..., "time": seconds since 1970, NAME: value, ...}`.

    No step stands twice: what comes later for the last step is merged into its record, and at opening all records after
    `resume_step` are removed, with lines that a kill left unfinished. A value that is not finite is null. A local file
    is appended to, record by record; object stores (`gs://`) cannot append, there the object is written anew each time.
    """

    def __init__(self, path: epath.PathLike, resume_step: int = 0):
        self._path = epath.Path(path)
        text = self._path.read_text() if self._path.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if _kept(line, resume_step)]
        if (kept := "".join(lines)) != text:
            unfinished = self._path.with_name(self._path.name + ".tmp")
            unfinished.write_text(kept)
            unfinished.replace(self._path)
        self._done, self._line = "".join(lines[:-1]), "".join(lines[-1:])  # all but the last record, and that
        self._begin = len(self._done.encode())  # where in the file the last record begins
        self._record: dict[str, Any] = json.loads(self._line or "{}")
        local = "://" not in os.fspath(self._path)
        # unbuffered: nothing is left over to fail again at closing where a disk is full
        self._file = open(self._path, "ab", buffering=0) if local else None  # noqa: SIM115

    def write(self, step: int, scalars: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Writes the scalars; images have no place here."""
        last = self._record.get("step", -1)
        if step < last:
            raise LogError(f"records of {self._path} are in order of steps: step {step} came after {last}")
        before = self._record if step == last else {}
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        record = {"step": step, "time": round(time.time(), 3), **before, **finite}
        line, done = json.dumps(record) + "\n", "" if before else self._line
        if self._file is None:
            self._done += done
            self._path.write_text(self._done + line)
        else:
            self._append(line.encode(), len(done.encode()))
        self._record, self._line = record, line

    def close(self) -> None:
        """Closes the file; every record is in it already."""
        if self._file is not None:
            self._file.close()

    def _append(self, line: bytes, done: int) -> None:
        """Writes a record `done` bytes after the last one's begin, over it if that is 0; all of it or nothing."""
        assert self._file is not None
        try:
            os.truncate(self._file.fileno(), self._begin + done)
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.truncate(self._file.fileno(), self._begin)
            self._file.write(self._line.encode())
            advice = "make room and start again: the run goes on from its last checkpoint"
            raise OSError(error.errno, f"cannot write {self._path}: {error.strerror}; {advice}") from error
        self._begin += done


class TensorBoard:
    """TensorBoard events, in the file when `write` returns; those after the step that a run goes on from are hidden.

    Object stores (`gs://`) cannot append: there the file is written anew each time, and another one begun after 1 MiB.
    """

    def __init__(self, folder: epath.PathLike, resume_step: int = 0):
        from tensorboardX import event_file_writer, summary  # a second to import: only where it is used
        from tensorboardX.proto import event_pb2

        self._summary, self._events = summary, event_pb2
        self._folder = epath.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._local = tempfile.TemporaryDirectory() if "://" in os.fspath(self._folder) else None
        where = os.fspath(self._folder) if self._local is None else self._local.name
        # written from here and not from a thread, which would take a full disk with it in silence
        self._open = lambda: event_file_writer.EventsWriter(os.path.join(where, "events"), f".{time.time_ns()}")
        self._file = self._open()
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(event_pb2.Event(step=resume_step + 1, session_log=session))
        self._flush()

    def write(self, step: int, scalars: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Writes events."""
        for name, value in scalars.items():
            self._put(self._events.Event(step=step, summary=self._summary.scalar(name, value)))
        for name, image in images.items():
            picture = self._summary.image(name, image, dataformats="HWC")
            self._put(self._events.Event(step=step, summary=picture))
        self._flush()

    def close(self) -> None:
        """Closes the event file."""
        self._file.close()
        if self._local is not None:
            self._local.cleanup()

    def _flush(self) -> None:
        self._file.flush()
        if self._local is None:
            return
        (path,) = pathlib.Path(self._local.name).iterdir()
        (self._folder / path.name).write_bytes(path.read_bytes())
        if path.stat().st_size > 2**20:
            self._file.close()
            path.unlink()
            self._file = self._open()

    def _put(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)


class Wandb:
    """A run of Weights & Biases, the same one after a resume: its id is in `wandb_id.txt` of the work directory.

    Steps that it has already stay as they are.
    """

    def __init__(self, wandb: ModuleType, root: epath.Path, resume_step: int = 0):
        stored = root / "wandb_id.txt"
        name = stored.read_text().strip() if resume_step and stored.exists() else uuid.uuid4().hex[:12]
        stored.write_text(name + "\n")
        config = root / "config.json"
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "maskdit"),
            id=name,
            name=root.name,
            resume="allow",
            dir=None if "://" in os.fspath(root) else os.fspath(root),
            config=json.loads(config.read_text()) if config.exists() else None,
        )

    def write(self, step: int, scalars: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Logs scalars and images in one call."""
        self._run.log({**scalars, **{name: self._image(image) for name, image in images.items()}}, step=step)

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


def _kept(line: str, resume_step: int) -> bool:
    """Whether a line is a whole record of a step that the run goes on from, or an earlier one."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= resume_step
    except (ValueError, TypeError, KeyError):
        return False


def import_wandb() -> ModuleType:
    """The wandb package.

    Raises:
      LogError: where it is not installed.
    """
    try:
        import wandb
    except ImportError:
        wandb = None
    if not hasattr(wandb, "init"):  # a folder named wandb, left by a run, imports as an empty package
        raise LogError("log.wandb is on and wandb is not installed: pip install maskdit[wandb], or turn it off")
    return wandb

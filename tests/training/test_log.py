"""Records survive kills, resumes and full disks; means are those of the interval."""

import io
import json
import math
import resource
import struct
import sys
import types

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from maskdit.training.log import Jsonl, Log, LogError, NotFiniteError, Terminal

IMAGE = np.zeros((4, 6, 3), np.uint8)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_log(path, resume_step=0, **fields):
    settings = Log(**{"every": 2, "tensorboard": False, "progress": False, **fields})
    return settings.open(path, total=6, batch=8, resume_step=resume_step)


def metrics(loss, weight=1.0):
    return {"loss": (jnp.float32(loss * weight), jnp.float32(weight))}


def test_record_is_the_weighted_mean_of_its_interval(tmp_path):
    with open_log(tmp_path) as log:
        for step, (loss, weight) in enumerate([(1.0, 1.0), (4.0, 3.0), (5.0, 2.0)], start=1):
            log.step(step, metrics(loss, weight) | {"loss/low": (jnp.float32(0), jnp.float32(0))}, replaced=step)
        log.flush()
    (record,) = records(tmp_path / "metrics.jsonl")
    assert record["step"] == 2
    assert record["loss"] == pytest.approx((1 + 4 * 3) / 4)
    assert "loss/low" not in record  # no example of that level: no mean
    assert record["replaced"] == 3 and record["images_per_second"] > 0 and 0 <= record["data_wait"] <= 1


def test_last_step_is_recorded_where_it_ends_no_interval(tmp_path):
    with open_log(tmp_path, every=4) as log:
        for step in range(1, 7):
            log.step(step, metrics(step))
        log.flush()
    assert [(r["step"], r["loss"]) for r in records(tmp_path / "metrics.jsonl")] == [(4, 2.5), (6, 5.5)]


def test_metrics_are_fetched_one_step_late_and_never_implicitly(tmp_path):
    first, second = metrics(1.0), metrics(2.0)
    with open_log(tmp_path, every=1) as log, jax.transfer_guard("disallow"):
        log.step(1, first)
        assert records(tmp_path / "metrics.jsonl") == []
        log.step(2, second)
        assert [r["step"] for r in records(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("name", ["loss", "grad_norm", "generator/loss"])
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path, name):
    with open_log(tmp_path) as log:
        log.step(1, {name: (jnp.float32(math.inf), jnp.float32(1))})
        with pytest.raises(NotFiniteError, match=rf"{name} of step 1 is inf"):
            log.flush()


def test_two_writes_of_a_step_make_one_record(tmp_path):
    with open_log(tmp_path) as log:
        for step in (1, 2):
            log.step(step, metrics(step))
        log.write(2, {"held_out/loss": 7.0, "loss/low": math.nan})
        log.write(4, {"held_out/loss": 8.0})
    first, second = records(tmp_path / "metrics.jsonl")
    assert (first["step"], first["loss"], first["held_out/loss"], first["loss/low"]) == (2, 1.5, 7.0, None)
    assert (second["step"], second["held_out/loss"]) == (4, 8.0)


def test_resume_removes_later_records_and_the_unfinished_line(tmp_path):
    with open_log(tmp_path, every=1) as log:
        for step in range(1, 6):
            log.step(step, metrics(step))
        log.flush()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole) + '{"step": 3, "lo')
    with open_log(tmp_path, resume_step=3, every=1) as log:
        assert path.read_text() == "".join(whole[:3])
        log.write(3, {"held_out/loss": 0.5})  # what was cut off between the checkpoint and its evaluation
        log.step(4, metrics(40.0))
        log.flush()
    assert [(r["step"], r["loss"]) for r in records(path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert records(path)[2]["held_out/loss"] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_restart_without_checkpoint_begins_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2')
    with open_log(tmp_path) as log:
        log.write(1, {"loss": 9.0})
    assert [(r["step"], r["loss"]) for r in records(tmp_path / "metrics.jsonl")] == [(1, 9.0)]


def test_steps_that_go_back_are_refused(tmp_path):
    with open_log(tmp_path) as log:
        log.write(4, {"loss": 1.0})
        with pytest.raises(LogError, match="step 3 came after 4"):
            log.write(3, {"loss": 1.0})


@pytest.mark.parametrize("step", [2, 3], ids=["same step", "next step"])
def test_full_disk_keeps_what_was_written(tmp_path, step):
    path = tmp_path / "metrics.jsonl"
    log = Jsonl(path)
    log.write(1, {"loss": 1.0}, {})
    log.write(2, {"loss": 2.0}, {})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*make room and start again"):
            log.write(step, {"held_out/loss": 3.0}, {})
        assert path.read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write(step, {"held_out/loss": 3.0}, {})
    log.close()
    assert [r["step"] for r in records(path)] == sorted({1, 2, step})


def test_object_store_holds_the_same_records(monkeypatch):
    monkeypatch.setattr(fsspec, "filesystem", lambda name, **_: MemoryFileSystem(skip_instance_cache=True))
    folder = epath.Path("gs://bucket/run")
    with open_log(folder, every=1) as log:
        for step in (1, 2, 3):
            log.step(step, metrics(step))
        log.flush()
    with open_log(folder, resume_step=2) as log:
        log.write(2, {"held_out/loss": 5.0})
        log.write(4, {"held_out/loss": 6.0})
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [(1, 1, None), (2, 2, 5), (4, None, 6)]
    assert [(r["step"], r.get("loss"), r.get("held_out/loss")) for r in read] == expected


def events(path):
    """The events of a file of records: length, checksum, data, checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack_from("<Q", data)
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_tensorboard_hides_what_a_resume_repeats(tmp_path):
    for resume, value in ((0, 1.0), (2, 2.0)):  # both within a second
        with open_log(tmp_path, resume_step=resume, tensorboard=True) as log:
            log.write(3, {"loss": value}, {"samples": IMAGE})
    first, second = (list(events(path)) for path in sorted((tmp_path / "tensorboard").iterdir()))
    for found, step, value in ((first, 1, 1.0), (second, 3, 2.0)):
        begins = [event.step for event in found if event.HasField("session_log")]
        shown = [(event.step, item) for event in found for item in event.summary.value]
        assert begins == [step]  # TensorBoard drops what earlier files have from this step on
        assert [(at, item.tag, item.simple_value) for at, item in shown if not item.HasField("image")] == [
            (3, "loss", value)
        ]
        assert [(item.tag, item.image.height, item.image.width) for _, item in shown if item.HasField("image")] == [
            ("samples", 4, 6)
        ]


def test_image_must_be_uint8(tmp_path):
    with open_log(tmp_path) as log, pytest.raises(LogError, match=r"'samples' must be uint8 \[H, W, 3\], got float32"):
        log.write(1, {}, {"samples": IMAGE.astype(np.float32)})


def test_wandb_asked_for_and_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # as a folder named wandb imports
    with pytest.raises(LogError, match=r"pip install maskdit\[wandb\]"):
        open_log(tmp_path, wandb=True)
    assert list(tmp_path.iterdir()) == []


def test_wandb_continues_its_run(tmp_path, monkeypatch):
    runs, logged = [], []
    fake = types.ModuleType("wandb")
    fake.Image = lambda image: ("image", image.shape)
    run = types.SimpleNamespace(log=lambda data, step: logged.append((step, data)), finish=lambda: None)
    fake.init = lambda **kw: runs.append(kw) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "config.json").write_text('{"steps": 6}')
    for resume in (0, 2, 0):
        with open_log(tmp_path, resume_step=resume, wandb=True) as log:
            log.write(resume + 1, {"loss": 1.0}, {"samples": IMAGE})
    assert runs[0]["id"] == runs[1]["id"] != runs[2]["id"]  # a run that begins anew is another one
    assert runs[0]["config"] == {"steps": 6} and runs[0]["name"] == tmp_path.name
    assert logged[1] == (3, {"loss": 1.0, "samples": ("image", (4, 6, 3))})


def test_other_processes_write_nothing_and_still_stop(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with open_log(tmp_path / "run") as log:
        log.say("hello")
        log.write(1, {"loss": 1.0})
        log.step(2, metrics(math.nan))
        with pytest.raises(NotFiniteError):
            log.flush()
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_terminal_without_a_watcher_gets_a_line_for_each_record():
    out = io.StringIO()
    terminal = Terminal(total=100, batch=8, console=Console(file=out, width=40))
    terminal.advance(1)
    terminal.write(10, {"loss": 0.5, "loss/low": 0.1, "images_per_second": 4.0, "grad_norm": 3.0}, {})
    terminal.write(10, {"held_out/loss": 0.25}, {})
    terminal.write(20, {"lr": 1.0}, {})
    terminal.say("[bold] stays as it is, however long the line may be")
    terminal.close()
    assert out.getvalue().splitlines() == [
        "step 10/100  loss 0.5000  4.0 images/s  3:00 left",
        "step 10/100  held-out/loss 0.2500",
        "[bold] stays as it is, however long the line may be",
    ]


def test_bar_shows_place_loss_rate_and_time_left():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    terminal = Terminal(total=100, batch=8, start=5, console=console)
    terminal.advance(9)
    terminal.write(10, {"loss": 0.5, "images_per_second": 0.16}, {})
    terminal.say("a line above")
    terminal.close()
    last = out.getvalue().replace("\r", "\n").rstrip("\x1b[?25h\n").splitlines()[-1]
    assert "10/100" in last and "loss 0.5000  0.2 images/s  1:15:00 left" in last
    assert "a line above" in out.getvalue()

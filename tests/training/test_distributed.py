"""Real processes on one machine, each with virtual devices: they train as one, stop as one, and fail as one."""

import json
import shutil
import signal
import textwrap

import jax
import numpy as np
import pytest

import maskdit
from maskdit.train import train
from maskdit.training import checkpoint, distributed
from tests import several
from tests.tiny import SMALL, tiny

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several processes")]

SETTINGS = {"mesh.data": 4, "mesh.fsdp": 1, "mesh.dcn_data": 1, "mesh.dcn_fsdp": 2, "evaluation.every": 10}
"""A mesh whose `fsdp` axis spans processes: a device of the first half and one of the second share the parameters."""

TRAIN = textwrap.dedent(
    """
    import json, os, signal, sys, time
    from maskdit.train import train
    from maskdit.training.log import RunLog
    from tests import several
    from tests.tiny import tiny

    workdir, rows, settings, event, me = sys.argv[1:]
    number, process, step = (*event.split(":"), "", "")[:3]
    original = RunLog.step

    def at(self, done, *args, **kw):
        if (process, step) == (me, str(done)):
            os.kill(os.getpid(), int(number))
        if number == str(int(signal.SIGTERM)) and done >= int(step):
            time.sleep(0.3)  # a step that takes time, in which processes agree where to stop
        return original(self, done, *args, **kw)

    RunLog.step = at
    with several.fed_rows(rows):
        state = train(tiny(json.loads(settings)), workdir)
    print("updates done:", int(state.step))
    """
)


def job(workdir, rows, settings=SETTINGS, event="", count=2, devices=4):
    """Trains; at EVENT, `SIGNAL:PROCESS:STEP`, that process sends itself that signal after that step."""
    arguments = ["-c", TRAIN, str(workdir), str(rows), json.dumps(settings), event, "{process}"]
    return several.run(arguments, count, devices)


def losses(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records], [record.get("held_out/loss") for record in records]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def whole(folder):
    """One process with 8 devices, never interrupted."""
    with several.fed_rows(folder / "whole"):
        train(tiny(SETTINGS), str(folder / "whole-run"))
    return folder / "whole-run"


@pytest.fixture(scope="module")
def killed(folder):
    """2 processes with 4 devices; one is killed after step 12."""
    settings = {**SETTINGS, "evaluation.images": 4}
    ended = job(folder / "run", folder / "rows-2x4", settings, f"{int(signal.SIGKILL)}:1:12")
    return ended, folder / "run"


@pytest.fixture(scope="module")
def resumed(folder, killed):
    """The killed run goes on as 4 processes with 2 devices, one of which gets SIGTERM after step 14."""
    shutil.copytree(folder / "run", folder / "resumed")
    ended = job(folder / "resumed", folder / "rows-4x2", event=f"{int(signal.SIGTERM)}:3:14", count=4, devices=2)
    return ended, folder / "resumed"


def test_a_dead_peer_ends_the_others_with_a_sentence(killed):
    first, second = killed[0]
    assert second.code == -signal.SIGKILL
    assert first.code == 1, first.said
    assert "heard of process 1 (" in first.said and "tart the job again" in first.said


def test_sigterm_to_one_process_stops_all_after_the_same_step(resumed):
    ended, workdir = resumed
    assert [process.code for process in ended] == [0] * 4, ended[0].said
    (step,) = {process.said.split("updates done: ")[1].split()[0] for process in ended}
    assert 14 <= int(step) < 20
    assert checkpoint.read(str(workdir)).meta["step"] == int(step)


def rows(folder, name):
    """Step -> what the processes fed, in the order of processes."""
    fed = {}
    for file in sorted(folder.glob(f"{name}.*")):
        for line in file.read_text().splitlines():
            step, found = json.loads(line)
            fed.setdefault(step, []).append(found)
    return fed


def test_losses_are_those_of_one_process(whole, killed, resumed):
    for _, workdir in (killed, resumed):  # on from 2 x 4 at once, and from 4 x 2 after that
        train(tiny(SETTINGS), str(workdir))
        ours, expected = losses(workdir), losses(whole)
        np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose([ours[1][9], ours[1][19]], [expected[1][9], expected[1][19]], rtol=1e-5)
    assert (killed[1] / "samples.png").is_file()  # drawn by two processes, at step 10


def test_rows_are_those_of_one_process(folder, whole, killed, resumed):
    expected = rows(folder, "whole")
    assert [row for row, _ in expected[0][0]] == list(range(8))
    for name, each, steps in (("rows-2x4", 4, range(12)), ("rows-4x2", 2, range(10, 14))):
        fed = rows(folder, name)
        for step in steps:
            assert [len(part) for part in fed[step]] == [each] * (8 // each)
            assert sorted(row for part in fed[step] for row in part) == sorted(expected[step][0])
            for part in fed[step]:  # in the order of the batch, a block for each device
                assert part == [row for row in expected[step][0] if row in part]


def test_images_do_not_depend_on_processes(folder, whole):
    num = ["--num", "101"]  # drawn in parts
    arguments = ["sample", str(whole), *num, "--steps", "2", "--seed", "3", "--npz", str(folder / "many.npz")]
    for ended in several.run(["-m", "maskdit.cli", *arguments]):
        assert ended.code == 0, ended.said
    images = maskdit.load(str(whole)).sample(count=101, steps=2, seed=3)
    assert not (folder / "many.npz.parts").exists()
    assert np.abs(np.load(folder / "many.npz")["arr_0"].astype(int) - images).max() <= 1


def test_peers_that_were_started_differently_are_refused(tmp_path):
    snippet = textwrap.dedent(
        """
        import importlib.metadata, sys
        if sys.argv[2] == "1":
            version = importlib.metadata.version
            importlib.metadata.version = lambda name: "0.0.7" if name == "optax" else version(name)
        from maskdit import cli
        sys.exit(cli.main(sys.argv[3:] + ["--workdir", sys.argv[1], "--config.task.network.width", "16" + sys.argv[2]]))
        """
    )
    arguments = ["-c", snippet, str(tmp_path / "run"), "{process}", "train", "--config", "maskdit_emoji:smoke"]
    for ended in several.run(arguments):
        assert ended.code == 1
        assert "process 1 (" in ended.said and "config.task.network.width is 161, on process 0 160" in ended.said
        assert "versions.optax is '0.0.7'" in ended.said and "Traceback" not in ended.said
    assert not (tmp_path / "run").exists()


def test_bad_input_is_a_sentence_on_every_process(tmp_path):
    overrides = [f"--config.{key}={value}" for key, value in {**SMALL, "mesh.data": 3}.items()]
    command = ["-m", "maskdit.cli", "train", "--config", "maskdit_emoji:smoke", "--workdir", str(tmp_path)]
    for ended in several.run([*command, *overrides]):
        assert ended.code == 1
        assert "does not fit 8 devices" in ended.said and "Traceback" not in ended.said


@pytest.mark.parametrize("failing", ["0", "1"])
def test_an_error_of_one_process_is_told_by_all(failing):
    snippet = textwrap.dedent(
        """
        import sys
        from maskdit.training import distributed
        with distributed.together():
            if sys.argv[1] == sys.argv[2]:
                raise ValueError("this disk is full")
            distributed.barrier()
        """
    )
    ended = several.run(["-c", snippet, failing, "{process}"], devices=1)
    assert [process.code for process in ended] == [1, 1]
    other = ended[1 - int(failing)].said
    assert f"process {failing} (" in other and "stopped: this disk is full" in other and "Traceback" not in other


def test_a_peer_that_never_comes():
    command = ["-m", "maskdit.training.distributed", "--check"]
    (ended,) = several.start(command, only=[1], MASKDIT_PATIENCE="5").wait()
    assert ended.code == 1 and "process 1 waited 5 s for 2 processes at 127.0.0.1:" in ended.said


def test_check_looks_at_all_processes(tmp_path):
    command = ["-m", "maskdit.training.distributed", "--check", "--bucket"]
    ended = several.run([*command, str(tmp_path / "bucket")])
    assert [process.code for process in ended] == [0, 0], ended[0].said
    assert "8 devices on 2 process(es), a sum over all of them is right" in ended[0].said
    assert "every process can write to" in ended[0].said and "maskdit" not in ended[1].said
    assert list((tmp_path / "bucket").iterdir()) == []
    (tmp_path / "file").write_text("")
    for process in several.run([*command, str(tmp_path / "file" / "bucket")]):
        assert process.code == 1 and "process 1 (" in process.said and "cannot write to" in process.said


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MASKDIT_COORDINATOR": "host:1"}, "MASKDIT_PROCESSES and MASKDIT_PROCESS is not"),
        ({"MASKDIT_COORDINATOR": "host:1", "MASKDIT_PROCESSES": "2", "MASKDIT_PROCESS": "2"}, "a number 0 to N - 1"),
        ({"MASKDIT_COORDINATOR": "host", "MASKDIT_PROCESSES": "2", "MASKDIT_PROCESS": "1"}, "HOST:PORT"),
        ({"MASKDIT_PATIENCE": "soon"}, "number of seconds"),
    ],
)
def test_variables_that_name_no_job(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(distributed.DistributedError, match=message):
        distributed.initialize()
    assert jax.process_count() == 1

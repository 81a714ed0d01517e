"""A batch system signals the whole group of processes, as Ctrl-C does: what the workers say last must still be seen."""

import os
import pathlib
import signal
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "local.sh"
WORKER = """#!/usr/bin/env bash
trap 'echo saved; exit 0' TERM
echo up
while true; do read -r -t 0.1 < /dev/fd/9; done 9<> <(:)
"""


@pytest.mark.slow
def test_workers_are_heard_to_their_end(tmp_path):
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    command = [SCRIPT, "-n", "2", "--program", str(worker), "--", "train"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline(), running.stdout.readline()]
        os.killpg(running.pid, signal.SIGTERM)
        try:
            lines += running.communicate(timeout=60)[0].splitlines(keepends=True)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            raise
    assert {"[0] up\n", "[1] up\n", "[0] saved\n", "[1] saved\n"} <= set(lines)
    assert running.returncode == 0 or running.returncode >= 128

"""Ctrl-C and a batch system signal the whole group of processes: what the workers say last must still be seen."""

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
@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_workers_are_heard_to_their_end(tmp_path, number):
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    command = [SCRIPT, "-n", "2", "--program", str(worker), "--", "train"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline(), running.stdout.readline()]
        os.killpg(running.pid, number)
        lines += running.stdout.readlines()
    assert {"[0] up\n", "[1] up\n", "[0] saved\n", "[1] saved\n"} <= set(lines)
    assert running.returncode == 0 or running.returncode >= 128

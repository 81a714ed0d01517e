"""The launch scripts, against stand-ins for gcloud, uv and xpk that run what workers would run in folders here.

`LAUNCH_RECORD=1 pytest tests/launch` writes the recorded expectations anew.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
LAUNCH = HERE.parent.parent / "launch"
TRAIN = ("--config", "dit_imagenet256:XL/2", "--workdir", "gs://bucket/run")
TPU = ("--zone", "us-west4-a", "--project", "ours", "--poll", "0")

pytestmark = pytest.mark.slow  # starts processes


class Cloud:
    """A folder that plays Google Cloud, and the scripts run against it."""

    def __init__(self, folder, **settings):
        self.folder, self.checkout = folder / "cloud", folder / "checkout"
        self.folder.mkdir()
        (self.checkout / "launch").mkdir(parents=True)
        (self.checkout / "constraints.txt").write_text("jax==0\n")
        (self.checkout / "launch" / "tpu_worker.sh").write_text("")
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "--no-gpg-sign", "-m", "a")):
            subprocess.run(["git", "-C", str(self.checkout), *words], check=True)
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        self.environment = {
            **kept,
            "PATH": f"{HERE / 'fake'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "FAKE_STATE": str(self.folder),
            "FAKE_WORKERS": "1",
            "SOURCE": str(self.checkout),
            **settings,
        }
        for name in ("gcloud", "xpk", "uv"):  # never the real ones
            assert shutil.which(name, path=self.environment["PATH"]) == str(HERE / "fake" / name)

    def run(self, script, *words, code=0):
        done = subprocess.run(
            ["bash", str(LAUNCH / script), *words],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def tpu(self, verb, *words, code=0):
        return self.run("tpu_vm.sh", verb, *TPU, *words, code=code)

    def calls(self):
        """The cloud's commands in order, by kind and verb; repeated looks as one."""
        file = self.folder / "calls"
        found = [" ".join(line.split()[3:5]) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        looks = {"queued-resources list", "tpu-vm list"}
        return [call for call in found if call not in looks]

    def homes(self):
        return sorted((self.folder / "homes").iterdir())

    def when_training(self, text):
        (self.folder / "train.sh").write_text(text)


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path)
    yield made
    for pid in tmp_path.glob("cloud/homes/*/maskdit-job/pid"):  # groups that this test started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


# Trains until it is asked to end, then saves and ends with code 0, as a run that is preempted does.
UNTIL_ASKED = "trap 'exit 0' TERM\nwhile :; do sleep 0.02; done\n"


def test_shellcheck():
    tool = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("shellcheck is not installed")
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *(HERE / "fake").iterdir()]
    done = subprocess.run([tool, *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


MULTISLICE = ("--name", "pod", "--type", "v6e-64", "--slices", "2", "--spot", "--valid-until", "6h")
DRY_RUNS = {
    "tpu_create": ("tpu_vm.sh", "create", *TPU),
    "tpu_create_multislice": ("tpu_vm.sh", "create", *TPU, *MULTISLICE, "--create-flag=--internal-ips"),
    "tpu_create_no_queue": ("tpu_vm.sh", "create", "--no-queue", "--type=v5p-16"),
    "tpu_setup": ("tpu_vm.sh", "setup", *TPU),
    "tpu_setup_git": ("tpu_vm.sh", "setup", "--source", "git+https://example.org/maskdit", "--commit", "abc"),
    "tpu_check": ("tpu_vm.sh", "check", *TPU, "--workdir", "gs://bucket/run"),
    "tpu_run": ("tpu_vm.sh", "run", *TPU, *TRAIN, "--env", "A=b c", "--config.batch=1024", "--", "--trust", "mine"),
    "tpu_status": ("tpu_vm.sh", "status", *TPU),
    "tpu_logs": ("tpu_vm.sh", "logs", *TPU, "--worker", "all", "--follow", "--iap"),
    "tpu_babysit": ("tpu_vm.sh", "babysit", *TPU, *TRAIN, *MULTISLICE, "--no-check"),
    "tpu_stop": ("tpu_vm.sh", "stop", "--no-queue", "--iap", "--grace", "10"),
    "tpu_delete": ("tpu_vm.sh", "delete", *TPU),
    "tpu_delete_no_queue": ("tpu_vm.sh", "delete", "--no-queue"),
    "gke_create": ("gke.sh", "create", "--type", "v6e-64", "--slices", "2", "--spot"),
    "gke_run": ("gke.sh", "run", "--zone", "z", "--slices=2", *TRAIN, "--env", "A=b", "--config.batch=1024"),
    "gke_list": ("gke.sh", "list", "--cluster", "ours"),
    "gke_stop": ("gke.sh", "stop"),
    "gke_delete": ("gke.sh", "delete"),
    "slurm": ("slurm.sbatch", *TRAIN, "--config.batch=1024"),
    "local": ("local.sh", "-n", "2", "-d", "4", "--port", "12345", "--", "train", *TRAIN),
    "local_gpus": ("local.sh", "--gpus", "--port", "12345", "--", "sample", "runs/one"),
}


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_run(cloud, name):
    """Shows the recorded commands, calls nothing, and shows the same a second time."""
    file = HERE / "expected" / f"{name}.txt"
    script, *words = DRY_RUNS[name]
    at = words.index("--") if "--" in words else len(words)
    said = [cloud.run(script, *words[:at], "--dry-run", *words[at:]) for _ in range(2)]
    shown = []
    for text in said:
        text = re.sub(r"\b[0-9a-f]{40}\b", "COMMIT", text)
        text = re.sub(rf"{cloud.folder.parent}/tmp\.\w+", "SCRATCH", text)
        shown.append(text.replace(str(cloud.checkout), "CHECKOUT").replace(str(LAUNCH), "LAUNCH"))
    assert shown[0] == shown[1]
    assert not cloud.calls()
    if os.environ.get("LAUNCH_RECORD"):
        file.write_text(shown[0])
    assert shown[0] == file.read_text()


def test_every_expectation_is_used():
    assert {file.stem for file in (HERE / "expected").iterdir()} == set(DRY_RUNS)


BAD = {
    ("tpu_vm.sh", "creat"): "takes one of create, setup, check, run, status, logs, babysit, stop, delete, got 'creat'",
    ("tpu_vm.sh", "create", "--slices", "two"): "--slices takes a whole number from 1 on, got 'two'",
    ("tpu_vm.sh", "create", "--slices"): "--slices takes a value",
    ("tpu_vm.sh", "create", "--sloces", "2"): "there is no option '--sloces'",
    ("tpu_vm.sh", "create", "--name", "My TPU"): "got 'My TPU'",
    ("tpu_vm.sh", "create", "--type", "v6e"): "--type takes a type such as v5litepod-16, v6e-64 or v5p-16, got 'v6e'",
    ("tpu_vm.sh", "create", "--type", "tpu7x-8"): "TPU7x is offered on GKE only",
    ("tpu_vm.sh", "create", "--no-queue", "--slices", "2"): "several slices are made through the queue",
    ("tpu_vm.sh", "setup", "--commit", "nowhere"): "there is no commit 'nowhere'",
    ("tpu_vm.sh", "setup", "--source", "/nowhere"): "got '/nowhere'",
    ("tpu_vm.sh", "setup", "--source", "no.whl"): "there is no wheel 'no.whl'",
    ("tpu_vm.sh", "run", "--config", "a"): "give a work directory",
    ("tpu_vm.sh", "run", "--workdir", "gs://a/b"): "give a config",
    ("tpu_vm.sh", "run", *TRAIN, "--env", "A"): "--env takes NAME=VALUE, got 'A'",
    ("gke.sh", "run", *TRAIN, "--source", "/nowhere"): "--source takes a checkout of maskdit, got '/nowhere'",
    ("gke.sh", "launch"): "takes one of create, run, list, stop, delete, got 'launch'",
    ("slurm.sbatch", "--config", "a"): "give --config NAME[:variant] and --workdir DIR",
    ("slurm.sbatch", *TRAIN): "submit it with sbatch",
    ("local.sh", "-n", "0", "--", "train"): "-n takes a whole number from 1 on, got '0'",
    ("local.sh", "-n", "2"): "give what to run after --",
    ("local.sh", "--program", "nowhere", "--", "train"): "there is no program 'nowhere'",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_bad_input_is_one_sentence(cloud, words):
    said = cloud.run(*words, code=2)
    assert BAD[words] in said
    assert len(said.splitlines()) == 1
    assert not cloud.calls()


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm.sbatch", "local.sh"])
def test_help_tells_every_option(cloud, script):
    said = cloud.run(script, "--help")
    options = set(re.findall(r"\[(--?[a-z-]+)\]=", (LAUNCH / script).read_text()))
    assert f"launch/{script}" in said
    assert [option for option in options if not re.search(rf"(^|\s){option}\b", said)] == []


@pytest.mark.parametrize("workers", [1, 8])
def test_create_setup_run_delete_twice(cloud, workers):
    cloud.environment |= {"FAKE_WORKERS": str(workers), "FAKE_WAITS": "2"}
    cloud.when_training('printf "%s\\n" "$A $*" >>"$HOME/trained"\n' + UNTIL_ASKED)
    assert f"maskdit is ready: {workers} worker(s)" in cloud.tpu("create")
    cloud.tpu("create")
    assert cloud.calls() == ["queued-resources create"]

    for _ in range(2):
        cloud.tpu("setup")
    assert cloud.calls() == ["queued-resources scp", "queued-resources ssh"] * 2
    homes = cloud.homes()
    assert len(homes) == workers
    assert all((home / "maskdit-job" / "source" / "constraints.txt").exists() for home in homes)
    installs = [line for line in (cloud.folder / "installs").read_text().splitlines() if line.startswith("uv pip")]
    assert len(installs) == workers  # the second setup finds them
    assert "-c HOME/maskdit-job/source/constraints.txt" in installs[0]
    assert installs[0].endswith("maskdit[tpu,gcs] @ file://HOME/maskdit-job/source")

    words = (*TRAIN, "--config.task.name=two words", "--env", "A=1")
    assert "every worker passed the check" in cloud.tpu("run", *words)
    assert cloud.tpu("run", *words).count("runs already") == workers
    arguments = "1 train --workdir gs://bucket/run --config dit_imagenet256:XL/2 --config.task.name=two words\n"
    assert [(home / "trained").read_text() for home in homes] == [arguments] * workers

    cloud.calls()
    cloud.tpu("delete")
    assert "nothing to delete" in cloud.tpu("delete")
    assert cloud.calls() == ["queued-resources delete"]


def test_while_a_run_goes_on(cloud):
    cloud.when_training(UNTIL_ASKED)
    assert "not set up; run setup first" in (cloud.tpu("create") + cloud.tpu("run", *TRAIN, code=1))
    cloud.tpu("setup")
    cloud.tpu("run", *TRAIN)
    assert "training (1 training)" in cloud.tpu("status", *TRAIN)
    assert "-m maskdit.training.distributed --check --bucket gs://bucket/run" in cloud.tpu("logs")
    assert "another run goes on here" in cloud.tpu("run", *TRAIN, "--config.seed=1", code=1)
    assert "a run is going on" in cloud.tpu("setup", "--extras", "tpu", code=1)  # would change what runs

    cloud.tpu("stop")
    assert "nothing runs here" in cloud.tpu("stop")
    assert "broken (1 stopped)" in cloud.tpu("status", *TRAIN)  # it saved, it did not finish


def test_no_queue(cloud):
    cloud.tpu("create", "--no-queue", "--name", "now")
    cloud.tpu("setup", "--name", "now")
    assert "it is not ready" not in cloud.tpu("run", "--name", "now", *TRAIN)
    cloud.tpu("delete", "--name", "now")
    calls = cloud.calls()
    assert calls[:3] == ["tpu-vm create", "tpu-vm scp", "tpu-vm ssh"]
    assert calls[-1] == "tpu-vm delete"


def test_without_a_tpu(cloud):
    for verb, words in {"setup": (), "run": TRAIN, "logs": (), "stop": ()}.items():
        assert "there is no TPU maskdit; run create first" in cloud.tpu(verb, *words, code=1)
    assert cloud.calls() == []


def test_a_check_that_fails_is_shown(cloud):
    cloud.environment["FAKE_WORKERS"] = "2"
    (cloud.folder / "check.sh").write_text('echo "maskdit: process 1 cannot write"; exit 1\n')
    cloud.tpu("create")
    cloud.tpu("setup")
    said = cloud.tpu("run", *TRAIN, code=1)
    assert "the check did not pass (2 failed (check, exit code 1))" in said
    assert said.count("maskdit: process 1 cannot write") == 2
    said = cloud.tpu("check", "--workdir", "gs://bucket/run", code=1)
    (cloud.folder / "check.sh").unlink()
    assert "every worker passed the check" in cloud.tpu("check", "--workdir", "gs://bucket/run")


ROUND = ["queued-resources create", "queued-resources scp"]


def rounds(calls):
    """What babysit did, without looking and without asking the workers."""
    return [call for call in calls if call not in ("queued-resources ssh", "tpu-vm ssh")]


@pytest.mark.parametrize("workers, slices", [(1, 1), (2, 2)])
def test_babysit_after_a_preemption(cloud, workers, slices):
    cloud.environment |= {"FAKE_WORKERS": str(workers), "FAKE_PREEMPT": "1", "FAKE_WAITS": "1"}
    cloud.when_training(f'if [[ ! -e $FAKE_STATE/preempted ]]; then\n{UNTIL_ASKED}fi\necho finished >"$HOME/done"\n')
    said = cloud.tpu("babysit", *TRAIN, "--spot", "--slices", str(slices))
    assert "SUSPENDED" in said
    assert "the run is finished" in said
    assert rounds(cloud.calls()) == [*ROUND, "queued-resources delete", *ROUND]
    assert [(home / "done").exists() for home in cloud.homes()] == [True] * workers * slices

    assert "the run is finished" in cloud.tpu("babysit", *TRAIN, "--slices", str(slices))
    assert rounds(cloud.calls()) == []


def test_babysit_starts_again_what_failed_and_what_was_stopped(cloud):
    cloud.environment["FAKE_WORKERS"] = "2"
    counted = 'echo x >>"$HOME/starts"\n[[ $(wc -l <"$HOME/starts") -gt 2 ]] || exit 3\n'
    cloud.when_training(counted)
    said = cloud.tpu("babysit", *TRAIN)
    assert "the run is finished" in said
    assert [(home / "starts").read_text().count("x") for home in cloud.homes()] == [3, 3]

    cloud.when_training(UNTIL_ASKED)  # another run on the same TPU: not finished because the first one is
    other = (*TRAIN, "--config.seed=1")
    cloud.tpu("run", *other)
    cloud.tpu("stop")
    cloud.when_training("")
    assert "2 stopped" in cloud.tpu("babysit", *other)


def test_babysit_gives_up(cloud):
    cloud.when_training("exit 3\n")
    said = cloud.tpu("babysit", *TRAIN, "--max-failures", "1", code=1)
    assert "gave up after 2 failures" in said
    assert rounds(cloud.calls()) == [*ROUND, "queued-resources scp"]


def test_a_request_that_failed(cloud):
    cloud.tpu("create", "--no-wait")
    queue = cloud.folder / "queues" / "maskdit"
    queue.write_text("FAILED\n")
    assert "could not be made (queued resource: FAILED" in cloud.tpu("create", code=1)
    assert "maskdit: lost" in cloud.tpu("status")
    cloud.calls()
    assert "the run is finished" in cloud.tpu("babysit", *TRAIN)
    assert rounds(cloud.calls()) == ["queued-resources delete", *ROUND]


def test_babysit_leaves_another_run_alone(cloud):
    cloud.when_training(UNTIL_ASKED)
    cloud.tpu("create")
    cloud.tpu("setup")
    cloud.tpu("run", *TRAIN)
    assert "another run goes on there" in cloud.tpu("babysit", *TRAIN, "--config.seed=1", code=1)
    assert "training (1 training)" in cloud.tpu("status", *TRAIN)


def test_a_wheel_is_sent_to_the_workers(cloud):
    wheel = cloud.folder / "maskdit-1-py3-none-any.whl"
    wheel.write_text("")
    cloud.tpu("create")
    cloud.tpu("setup", "--source", str(wheel))
    assert (cloud.homes()[0] / wheel.name).exists()
    assert f"file://HOME/{wheel.name}" in (cloud.folder / "installs").read_text()


def test_gke_twice(cloud):
    cloud.run("gke.sh", "run", *TRAIN)
    assert "there is a run maskdit already" in cloud.run("gke.sh", "run", *TRAIN)
    cloud.run("gke.sh", "run", *TRAIN, "--name", "mask")  # the beginning of another name
    cloud.run("gke.sh", "stop")
    assert "nothing to stop" in cloud.run("gke.sh", "stop")
    calls = (cloud.folder / "calls").read_text().splitlines()
    assert [call.split()[2] for call in calls].count("create") == 2
    assert [call.split()[2] for call in calls].count("delete") == 1


def test_the_supervisor_tells_a_saved_run_from_a_finished_one(cloud):
    """Both end with code 0; Kubernetes starts the former again for its 143."""
    (cloud.folder / "bin").mkdir()
    program = cloud.folder / "bin" / "maskdit"
    program.write_text("#!/usr/bin/env bash\necho ready\n" + UNTIL_ASKED)
    program.chmod(0o755)
    environment = cloud.environment | {"PATH": f"{program.parent}:{cloud.environment['PATH']}"}
    command = ["bash", str(LAUNCH / "tpu_worker.sh"), "supervise", "train", "gs://bucket/run", "--", "--config", "a"]
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert "+ maskdit train --workdir gs://bucket/run --config a" in started.stdout.readline()
    assert started.stdout.readline() == "ready\n"
    started.terminate()
    said, _ = started.communicate(timeout=120)
    assert "train: stopped" in said
    assert started.returncode == 143
    program.write_text("#!/usr/bin/env bash\n")
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, timeout=120).returncode == 0


def local(cloud, text, *words, code=0):
    (cloud.folder / "program.sh").write_text(text)
    return cloud.run("local.sh", "--program", "bash program.sh", *words, "--", "train", "a b", code=code)


def test_local_runs_all(cloud):
    said = local(
        cloud, 'echo "$MASKDIT_PROCESS/$MASKDIT_PROCESSES $JAX_PLATFORMS $XLA_FLAGS $2"\n', "-n", "3", "-d", "2"
    )
    for i in range(3):
        assert f"[{i}] {i}/3 cpu --xla_force_host_platform_device_count=2 a b\n" in said
    assert len(set(re.findall(r"MASKDIT_COORDINATOR=(127\.0\.0\.1:\d+)", said))) == 1


def test_local_ends_the_others_when_one_fails(cloud):
    """The code is that of the failure. What a process left behind ends too: it would hold the output open."""
    last = "if [[ $MASKDIT_PROCESS == 1 ]]; then until [[ -e ready ]]; do sleep 0.02; done; exit 7; fi\n"
    said = local(cloud, f"{last}sleep 100 &\n{UNTIL_ASKED.replace('while', 'touch ready; while')}", code=7)
    assert "[1] ended with code 7" in said
    assert "[0] ended with code 0" in said


def test_local_when_signals_end_all_at_once(cloud):
    for _ in range(3):
        said = local(cloud, "kill -ABRT $$\n", "-n", "4", code=134)
        assert said.count("ended with code") == 4


def test_local_kills_what_does_not_end(cloud):
    text = "if [[ $MASKDIT_PROCESS == 1 ]]; then exit 7; fi\ntrap '' TERM\nwhile :; do sleep 0.02; done\n"
    assert "ended with code 137" in local(cloud, text, "--grace", "0", code=7)


def test_local_passes_sigterm_on(cloud):
    (cloud.folder / "program.sh").write_text(f"trap 'echo saved; exit 0' TERM\necho ready\n{UNTIL_ASKED[19:]}")
    command = ["bash", str(LAUNCH / "local.sh"), "--program", "bash program.sh", "--", "train"]
    started = subprocess.Popen(
        command, env=cloud.environment, cwd=cloud.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert {started.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}
    started.terminate()
    said, _ = started.communicate(timeout=120)
    assert sorted(said.splitlines()) == ["[0] saved", "[1] saved"]
    assert started.returncode == 0

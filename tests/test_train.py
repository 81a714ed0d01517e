import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import chex
import jax
import numpy as np
import pytest

from maskdit import config as configs
from maskdit.cli import main
from maskdit.contracts import ModelError
from maskdit.model import load
from maskdit.tokenizers.pixels import Pixels
from maskdit.tokenizers.vae import VAE
from maskdit.train import TrainingError, train
from maskdit.training import checkpoint, evaluation
from maskdit.training.log import NotFiniteError, RunLog
from maskdit.training.mesh import MeshShape
from tests.tiny import SMALL, tiny


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_bitwise(left, right):
    chex.assert_trees_all_equal(leaves(left), leaves(right))


def records(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted, its compilations per step, and its directory."""
    workdir = tmp_path_factory.mktemp("whole")
    compiled, events = [], []
    original = RunLog.step

    def step(self, *args, **kw):
        compiled.append(len(events))
        return original(self, *args, **kw)

    listen = lambda event, *_, **__: events.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    patch = pytest.MonkeyPatch()
    patch.setattr(RunLog, "step", step)
    state = train(tiny({"checkpoints.every": 100}), str(workdir))
    patch.undo()
    return state, compiled, workdir


def test_nothing_compiles_after_each_plans_first_step(whole):
    _, compiled, _ = whole
    grew = [step for step in range(1, 20) if compiled[step] > compiled[step - 1]]
    assert grew == [16]  # the first unmasked step
    assert compiled[0] > 0


def test_loss_by_noise_level_and_rates_are_recorded(whole):
    found = records(whole[2])
    assert [record["step"] for record in found] == list(range(1, 21))
    assert {"loss", "grad_norm", "lr", "images_per_second", "data_wait", "replaced"} <= set(found[3])
    assert sum(name.startswith("loss/sigma_") for record in found for name in record) > 20
    assert "held_out/loss" in found[-1] and any(name.startswith("held_out/loss/sigma_") for name in found[-1])


@pytest.mark.parametrize(
    ("tokenizer", "size", "channels"),
    [
        (configs.spec(Pixels, scale=0.5), 8, 3),
        (configs.spec(VAE, channels=(8, 8), groups=4, layers_per_block=1, latent_channels=4), 16, 4),
    ],
)
def test_the_same_config_trains_on_any_tokenizer(tmp_path, tokenizer, size, channels):
    config = tiny({"steps": 2, "data.size": size, "evaluation.images": 2, "held_out.size": size})
    config.task.tokenizer = tokenizer
    config.task.network.update(input_size=8, patch=2, channels=channels)
    train(config, str(tmp_path))
    assert load(str(tmp_path)).sample(count=2, steps=1).shape == (2, size, size, 3)
    assert (tmp_path / "samples.png").is_file()


@pytest.mark.slow
def test_killed_run_goes_on_bitwise(whole, tmp_path):
    overrides = [f"--config.{key}={value}" for key, value in SMALL.items()]
    command = [
        sys.executable,
        "-m",
        "maskdit.cli",
        "train",
        "--config",
        "maskdit_emoji:smoke",
        "--workdir",
        str(tmp_path),
    ]
    with subprocess.Popen([*command, "--config.steps=20", *overrides], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 11/"):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    before = records(tmp_path)
    state = train(tiny({"data.threads": 0, "checkpoints.keep": 2}), str(tmp_path))
    assert_bitwise(state, whole[0])
    assert before[-1]["step"] >= 10
    steps = [record["step"] for record in records(tmp_path)]
    assert steps == list(range(1, 21))


def test_sigterm_saves_and_the_run_goes_on_bitwise(whole, tmp_path, monkeypatch):
    original = RunLog.step

    def step(self, number, *args, **kw):
        if number == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", step)
        stopped = train(tiny(), str(tmp_path))
    assert int(stopped.step) == 7
    assert checkpoint.read(str(tmp_path)).meta["step"] == 7
    assert_bitwise(train(tiny(), str(tmp_path)), whole[0])


def test_stop_before_the_first_line_of_the_log_is_a_clean_exit(tmp_path, monkeypatch):
    original = RunLog.step

    def step(self, number, *args, **kw):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, *args, **kw)

    monkeypatch.setattr(RunLog, "step", step)
    overrides = [f"--config.{k}={v}" for k, v in {**SMALL, "steps": 20, "log.every": 50}.items()]
    assert main(["train", "--config", "maskdit_emoji:smoke", "--workdir", str(tmp_path), *overrides]) == 0
    assert checkpoint.read(str(tmp_path)).meta["step"] == 1


def test_evaluation_that_was_cut_off_is_made_up_for(tmp_path, monkeypatch):
    from maskdit import train as loop

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny({"steps": 2}), str(tmp_path))
    train(tiny({"steps": 2}), str(tmp_path))
    assert [("held_out/loss" in record) for record in records(tmp_path)] == [False, True]


def test_start_that_failed_leaves_the_directory_free(tmp_path):
    with pytest.raises(ValueError, match=r"set task\.network\.classes\.group=8"):
        train(tiny({"steps": 1, "task.network.classes.group": 7}), str(tmp_path))
    assert int(train(tiny({"steps": 1}), str(tmp_path)).step) == 1


def test_pictures_that_cannot_be_made_are_refused_before_training(tmp_path):
    with pytest.raises(ModelError, match="label_drop"):
        train(tiny({"steps": 1, "task.label_drop": 0.0, "evaluation.images": 4}), str(tmp_path))


def test_first_average_is_the_one_that_is_evaluated():
    state = type("State", (), {"params": {"a": 1}, "ema": {"0.9": {"a": 2}, "0.99": {"a": 3}}})()
    assert evaluation.averaged(state, (0.99, 0.9)) == {"a": 3}
    assert evaluation.averaged(state, ()) == {"a": 1}


def test_loader_with_worker_processes_trains_alike(whole, tmp_path):
    state = train(tiny({"data.workers": 1, "data.threads": 1}), str(tmp_path))
    assert_bitwise(state, whole[0])


def test_saved_on_eight_devices_restored_on_one(whole, tmp_path, monkeypatch):
    train(tiny({"steps": 10, "horizon": 20, "mesh.data": 2, "mesh.fsdp": 4}), str(tmp_path))
    make = MeshShape.make
    monkeypatch.setattr(MeshShape, "make", lambda self: make(self, jax.devices()[:1]))
    state = train(tiny({"horizon": 20}), str(tmp_path))
    for a, b in zip(leaves(state.params), leaves(whole[0].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_parameters_are_sharded_over_fsdp_and_batches_must_divide(tmp_path):
    state = train(tiny({"steps": 1, "mesh.data": 2, "mesh.fsdp": 4}), str(tmp_path / "a"))
    kernel = state.params["network"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    assert state.ema["0.995"]["network"]["blocks_0"]["mlp"]["fc1"]["kernel"].sharding == kernel.sharding
    with pytest.raises(ValueError, match="multiple of 8"):
        train(tiny({"batch": 12}), str(tmp_path / "b"))
    with pytest.raises(ValueError, match="8 devices"):
        train(tiny({"mesh.data": 3}), str(tmp_path / "c"))


def test_loss_that_is_not_finite_stops_and_is_not_saved(tmp_path):
    wild = {"task.groups.generator.optimizer.schedule.lr": 1e30, "task.groups.generator.optimizer.schedule.warmup": 0}
    wild |= {"task.groups.generator.optimizer.clip": None, "checkpoints.every": 1, "checkpoints.keep": 20}
    with pytest.raises(NotFiniteError, match=r"is (nan|inf)"):
        train(tiny(wild), str(tmp_path))
    last = checkpoint.read(str(tmp_path), ema="none")
    recorded = records(tmp_path)
    assert last.meta["step"] <= recorded[-1]["step"] + 1 < 20
    assert np.isfinite(recorded[last.meta["step"] - 1]["loss"])


def test_another_config_is_refused_and_named(whole, tmp_path):
    train(tiny({"steps": 1, "horizon": 20}), str(tmp_path))
    with pytest.raises(TrainingError, match=r"task\.label_drop: 0\.5 != 0\.1"):
        train(tiny({"task.label_drop": 0.5}), str(tmp_path))
    with pytest.raises(TrainingError, match="seed"):
        train(tiny({"seed": 1}), str(tmp_path))
    # steps, logging, evaluation, mesh and loader may change; the schedules' horizon stays
    train(tiny({"steps": 2, "log.every": 2, "data.threads": 1, "mesh.fsdp": 2}), str(tmp_path))
    assert configs.from_json((tmp_path / "config.json").read_text()).horizon == 20


def test_longer_run_keeps_the_horizon_of_its_start(tmp_path):
    train(tiny({"steps": 2}), str(tmp_path))
    train(tiny({"steps": 3}), str(tmp_path))
    assert configs.from_json((tmp_path / "config.json").read_text()).horizon == 2


def test_class_of_ones_own_is_trained_and_loaded_again(tmp_path, monkeypatch):
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(
        textwrap.dedent(
            """
            from maskdit.networks.maskdit import MaskDiT

            class Mine(MaskDiT):
                extra: int = 3
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from mypackage.nets import Mine

    config = tiny({"steps": 1})
    fields = {k: v for k, v in config.task.network.items() if k != "target"}
    config.task.network = configs.spec(Mine, **fields)
    with pytest.raises(configs.ConfigError, match="--trust=mypackage"):
        train(config, str(tmp_path / "run"))
    train(config, str(tmp_path / "run"), trust=("mypackage",))
    with pytest.raises(configs.ConfigError, match="outside maskdit"):
        load(str(tmp_path / "run"))
    model = load(str(tmp_path / "run"), trust=("mypackage",))
    assert type(model.task.network) is Mine and model.sample(count=2, steps=1).shape == (2, 64, 64, 3)


def test_full_disk_before_saving_tells_what_is_left(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    state = train(tiny({"steps": 1, "horizon": 20}), str(tmp_path))
    store = checkpoint.Store(str(tmp_path), checkpoint.Checkpoints())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(checkpoint.CheckpointError, match=r"no space left.*Checkpoint 1 is complete.*same command"):
        store.save(state.replace(step=state.step + 1), {})
    store.close()


@pytest.mark.slow
def test_full_disk_while_saving_tells_what_is_left(tmp_path):
    """A limit on the size of files stands in for a disk that fills up after the first checkpoint."""
    settings = {**SMALL, "steps": 20, "log.every": 10, "log.tensorboard": True}
    overrides = [f"--config.{k}={v}" for k, v in settings.items()]
    arguments = ["train", "--config", "maskdit_emoji:smoke", "--workdir", str(tmp_path), *overrides]
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from maskdit import cli
        from maskdit.training import checkpoint, evaluation
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        save = checkpoint.Store.save
        def full(self, state, meta):
            if int(state.step) == 10:
                self.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (12000, resource.RLIM_INFINITY))
            save(self, state, meta)
        checkpoint.Store.save = full
        sys.exit(cli.main(sys.argv[1:]))
        """
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Checkpoint 5 is complete" in done.stderr and "same command" in done.stderr
    assert checkpoint.read(str(tmp_path)).meta["step"] == 5

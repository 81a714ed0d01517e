import json
import logging
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from maskdit.training import xla
from maskdit.training.xla import OPTIONS, Option, compiler_options, keep_programs


def test_options_of_a_device_leave_what_the_user_sets(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=false --xla_dump_to=here")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    monkeypatch.setattr(xla, "OPTIONS", (*OPTIONS, Option("gpu", "another", 3, "")))
    assert compiler_options("gpu") == {"another": 3}
    assert compiler_options("tpu") == {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_jf_spmd_threshold_for_windowed_einsum_mib=0")
    assert compiler_options("tpu") == {}
    assert compiler_options("cpu") == {}


def test_options_for_gpus_are_known_to_the_installed_compiler():
    program = jax.jit(lambda x: x + 1).lower(1.0)
    given = compiler_options("gpu")
    assert given
    program.compile(compiler_options=given)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_of_another_version"):
        program.compile(compiler_options={**given, "xla_gpu_of_another_version": True})


@pytest.mark.slow
def test_options_for_tpus_are_known_to_the_installed_compiler(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    for name in ("v5e:2x2", "v6e:2x4", "v5p:2x2x1", "v4:2x2x1", "tpu7x:2x2x1"):
        device = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
        number = jax.ShapeDtypeStruct((), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
        given = compiler_options(device.platform)
        assert given
        jax.jit(lambda x: x + 1).lower(number).compile(compiler_options=given)


@pytest.fixture
def unset():
    """As where the user has set no directory."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_in_the_users_cache(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_programs() == tmp_path / "maskdit" / "xla"
    assert (tmp_path / "maskdit" / "xla").is_dir()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "maskdit" / "xla")


def test_directory_of_the_user_and_the_switch_win(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", False)
    assert keep_programs() is None
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/programs")
    assert keep_programs() is None
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/programs"
    assert not list(tmp_path.iterdir())


def test_directory_that_cannot_be_made_is_told_and_left_out(unset, tmp_path, monkeypatch, caplog):
    (tmp_path / "maskdit").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO, xla.__name__):
        assert keep_programs() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert str(tmp_path) in caplog.text and "JAX_COMPILATION_CACHE_DIR" in caplog.text


@pytest.mark.slow
def test_second_process_of_a_run_compiles_nothing(tmp_path):
    script = textwrap.dedent(
        """
        import collections, json, sys
        import jax
        from maskdit.cli import main
        from tests.tiny import SMALL
        seen = collections.Counter()
        jax.monitoring.register_event_listener(lambda event, **_: seen.update([event.rpartition("/")[2]]))
        settings = {**SMALL, "steps": 2}
        overrides = [f"--config.{key}={value}" for key, value in settings.items()]
        assert main(["train", "--config", "maskdit_emoji:smoke", "--workdir", sys.argv[1], *overrides]) == 0
        print(json.dumps(seen))
        """
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    seen, losses = [], []
    for name in ("first", "second"):
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-2000:]
        seen.append(json.loads(run.stdout.splitlines()[-1]))
        records = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(record)["loss"] for record in records])
    assert seen[0]["cache_misses"] > 0
    assert seen[1].get("cache_misses", 0) == 0
    assert seen[1]["cache_hits"] == seen[1]["compile_requests_use_cache"] > 0
    assert losses[0] == losses[1]

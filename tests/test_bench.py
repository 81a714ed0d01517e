import json
import pathlib
import re

import jax
import numpy as np
import pytest

from maskdit import config as configs
from maskdit.bench import PARTS, bench
from maskdit.cli import main
from maskdit.data.folder import Folder
from maskdit.performance.report import read
from maskdit.performance.subject import BenchError, Subject, Synthetic
from maskdit.train import train
from maskdit.training.checkpoint import read_frozen
from tests.tiny import SMALL, tiny

NAME = "maskdit_emoji:smoke"
SHORT = {"sampler.steps": 1}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    scratch = path / "scratch"
    scratch.mkdir()
    file = str(path / "report.json")
    report = bench(tiny(SHORT), NAME, rounds=1, json_file=file, scratch=str(scratch))
    assert list(scratch.iterdir()) == []
    return report, file


def test_every_part_is_measured_and_rates_agree_with_times(measured):
    report, file = measured
    assert read(file) == report
    assert {name.partition(".")[0] for name in report.figures} == set(PARTS)
    value = {name: figure.value for name, figure in report.figures.items()}
    for part in ("step", "both"):
        assert value[f"{part}.images_per_second"] * value[f"{part}.time"] / 1000 == pytest.approx(8)
        assert value[f"{part}.images_per_second_per_device"] * 8 == pytest.approx(value[f"{part}.images_per_second"])
    assert value["step.recompilations"] == 0 and value["step.compilations"] >= 1
    assert 0 <= value["both.data_wait"] <= 1
    assert value["step.time_to_first"] > value["step.trace_time"] + value["step.compile_time"]
    assert value["checkpoint.stall"] <= value["checkpoint.total"]
    assert value["sampler.latency_p50"] <= value["sampler.latency_p95"]
    for figure in report.figures.values():
        assert figure.value >= 0 and (figure.least is None or figure.least <= figure.value <= figure.most)


def test_the_report_says_what_it_belongs_to(measured):
    report, _ = measured
    assert report.mesh == {"data": 8, "fsdp": 1, "tensor": 1}
    assert configs.differences(configs.from_json(json.dumps(report.config)), tiny(SHORT)) == []
    assert "batch: 8 != 16" in report.changed
    flops = 6 * configs.build(tiny()).task.network.macs(8) / 1e9
    assert any(f"{flops:.4g} GFLOP per image" in note and "8 tokens kept" in note for note in report.notes)
    assert "float32 matrix products" in report.figures["step.mfu_measured"].note
    assert "compiler" in report.figures["step.memory_peak"].note


def test_checkpoint_bytes_are_those_of_the_state(measured):
    state = Subject(tiny()).begin()
    assert measured[0].figures["checkpoint.bytes"].value == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_comparison_with_a_doctored_file(measured, tmp_path, capsys):
    report, file = measured
    doctored = json.loads(pathlib.Path(file).read_text())
    doctored["figures"]["loader.images_per_second"]["value"] = 1e-3
    doctored["hardware"]["host"] = "another processor"
    (tmp_path / "old.json").write_text(json.dumps(doctored))
    now = bench(tiny(SHORT), NAME, parts=("loader",), rounds=1, against=str(tmp_path / "old.json"))
    out = capsys.readouterr().out
    assert f"{now.figures['loader.images_per_second'].value / 1e-3:.3f}x" in out
    assert "another processor" in out and set(now.figures) < set(report.figures)


def test_the_measured_steps_are_those_of_training(tmp_path):
    trained = train(tiny({"steps": 2}), str(tmp_path))
    subject = Subject(tiny({"steps": 2}))
    subject.frozen = jax.device_put(read_frozen(str(tmp_path)), subject.seed.sharding)
    subject.start()
    with subject.batches(start=1) as batches:
        subject.step(subject.place(next(batches)))
    for ours, theirs in zip(jax.tree.leaves(subject.state), jax.tree.leaves(trained), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_plan_is_that_of_the_step_asked_for():
    assert Subject(tiny()).plan.keep == 8
    assert Subject(tiny(), at=19).plan.keep is None
    with pytest.raises(BenchError, match="0 to 19; got 20"):
        Subject(tiny(), at=20)


def test_missing_data_name_the_ways_out(tmp_path):
    config = tiny()
    config.data.source = configs.spec(Folder, path=str(tmp_path / "nowhere"))
    with pytest.raises(BenchError, match=r"nowhere.*--config\.data\.source.*--synthetic"):
        Subject(config)
    subject = Subject(config, synthetic=True)
    assert subject.resident["image"].shape == (8, 64, 64, 3)


def test_synthetic_images_are_random_with_all_classes():
    source = Synthetic(size=16, classes={"style": 4, "group": 8})
    records = [source[index] for index in range(32)]
    assert {record["group"] for record in records} == set(range(8))
    assert len({record["image"].tobytes() for record in records}) == 32
    assert 100 < np.mean([record["image"] for record in records]) < 155
    assert len(source.vocabulary["style"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes a config"),
        (["c1", "--gates"], "takes a config"),
        (["c1", "--at", "3"], "bench c1 takes no --at"),
        (["--gates", "--config.batch=3"], "--gates takes no --config.batch"),
        ([NAME, "--parts", "loader,sampling"], "no part 'sampling'"),
        ([NAME, "--rounds", "0"], "1 or more"),
        ([NAME, "--against", "no/such.json"], "does not exist"),
        ([NAME, "--json", "no/such.json"], "folder does not exist"),
        ([NAME, "--config.batch=12"], "does not divide over 8 devices"),
    ],
)
def test_bad_input_is_a_sentence(capsys, arguments, message):
    assert main(["bench", *arguments]) == 1
    told = capsys.readouterr().err
    assert re.search(re.escape(message), told) and "Traceback" not in told


def test_another_config_is_refused_before_anything_runs(measured, capsys):
    overrides = [f"--config.{key}={value}" for key, value in {**SMALL, **SHORT, "steps": 20, "batch": 16}.items()]
    assert main(["bench", NAME, "--against", measured[1], *overrides]) == 1
    assert "batch: 16 != 8" in capsys.readouterr().err

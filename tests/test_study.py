"""A study end to end, on runs of a few steps."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from maskdit import load
from maskdit import study as verb
from maskdit.cli import main
from maskdit.config import ConfigError, pretrained, spec
from maskdit.evals.reconstruction import Swaps
from maskdit.networks.rar import RAR
from maskdit.processes.autoregressive import Autoregressive
from maskdit.studies.description import Column, Measured, Study, Trial
from maskdit.studies.measures import Likelihood, Reconstruction
from maskdit.train import train

SMALL = {
    "task.perceptual": None,
    "task.tokenizer.patch": 16,
    "task.tokenizer.channels": (8, 8),
    "task.tokenizer.latent_channels": 8,
    "data.source.split": "val",
    "steps": 4,
    "batch": 8,
    "ema": (0.5,),
    "checkpoints.every": 2,
    "log.every": 1,
    "log.tensorboard": False,
    "evaluation.examples": 8,
    "evaluation.batch": 8,
    "evaluation.images": 0,
}
SMALLEST = Study(
    name="smallest",
    about="Two runs of four steps.",
    trials=(
        Trial("codes", "vqgan_emoji:smoke", {"task.tokenizer.quantize.revive": 2}),
        Trial("no revival", "vqgan_emoji:smoke", {"task.tokenizer.quantize.revive": 0}),
    ),
    shared=SMALL,
    measure=Reconstruction(examples=16, train_examples=16, swaps=(Swaps(1.0, 8),)),
    columns=(
        Column("PSNR", "psnr"),
        Column("swapped", "psnr@1x8"),
        Column("used %", "train_usage", 1, 100),
        Column("KL", "kl_bits"),
        Column("seconds", "seconds"),
    ),
    notes=("A note.",),
)

TELLS = Trial(
    "codes generator",
    "rar_imagenet256:smoke",
    {
        "task.network": spec(
            RAR, vocabulary=64, grid=(2, 2), classes={"group": 8}, width=16, depth=1, heads=2, hidden=16
        ),
        "task.process": spec(Autoregressive, anneal_start=0, anneal_end=0),
        "data.source.split": "val",
        "data.size": 64,
        "held_out.size": 64,
        "checkpoints.every": 2,
        "log.every": 1,
        "log.tensorboard": False,
        "evaluation.examples": 16,
        "evaluation.images": 0,
    },
    after={"task.tokenizer": "codes"},
    measure=Likelihood(examples=16),
    row="codes",
)
CHAIN = dataclasses.replace(  # the runs of SMALLEST, and a generator on the codes of one
    SMALLEST,
    trials=(*(dataclasses.replace(t, overrides={**SMALL, **t.overrides}) for t in SMALLEST.trials), TELLS),
    shared={},
    columns=(*SMALLEST.columns, Column("bits", "bits_per_token", 6)),
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that was interrupted in the middle of its first run, after its second was made alone."""
    root = tmp_path_factory.mktemp("study")
    verb.study(SMALLEST, str(root / "runs"), json_file=str(root / "results" / "s.json"), only="no revival")
    kept = (root / "runs" / "no_revival-seed0" / "result.json").stat().st_mtime_ns
    half = verb.configuration(SMALLEST, SMALLEST.trials[0], 0)
    half.steps, half.horizon = 2, 4
    train(half, str(root / "runs" / "codes-seed0"))
    record = verb.study(SMALLEST, str(root / "runs"), json_file=str(root / "results" / "s.json"))
    return root, record, kept


def test_finished_runs_are_kept_and_an_interrupted_one_goes_on(done):
    root, record, kept = done
    assert (root / "runs" / "no_revival-seed0" / "result.json").stat().st_mtime_ns == kept
    assert [run["run"] for run in record["runs"]] == ["codes", "no revival"]
    lines = (root / "runs" / "codes-seed0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert "held_out/loss" in json.loads(lines[1]), "the evaluation at step 2 shows where the first start ended"


def test_results_say_what_they_belong_to(done):
    root, record, _ = done
    assert json.loads((root / "results" / "s.json").read_text()) == record
    assert record["kind"] == verb.KIND and record["study"] == "smallest"
    for run in record["runs"]:
        assert run["steps"] == 4 and run["batch"] == 8 and run["seed"] == 0 and run["config"] == "vqgan_emoji:smoke"
        assert run["overrides"]["task.tokenizer.channels"] == [8, 8] and run["overrides"]["task.perceptual"] is None
        assert {"psnr", "ssim", "l1", "psnr@1x8", "usage", "train_usage", "tokens", "bits"} <= run["metrics"].keys()
        assert run["seconds"] > 0 and "cores" in run["machine"] and run["versions"]["jax"] and run["missing"] == {}
    assert record["runs"][0]["overrides"]["task.tokenizer.quantize.revive"] == 2
    assert record["runs"][0]["metrics"]["psnr@1x8"] != record["runs"][0]["metrics"]["psnr"]


def test_other_settings_are_refused_in_the_same_place(done):
    root, _, _ = done
    other = dataclasses.replace(SMALLEST, shared={**SMALL, "batch": 16})
    with pytest.raises(verb.StudyError, match="other settings"):
        verb.study(other, str(root / "runs"), json_file=str(root / "other.json"))
    assert not (root / "other.json").exists()


@pytest.fixture(scope="module")
def chained(done, tmp_path_factory):
    """The runs of `done` and a generator on the codes of one, which was interrupted in the middle."""
    root = tmp_path_factory.mktemp("chain")
    shutil.copytree(done[0] / "runs", root / "runs")
    half = verb.configuration(CHAIN, TELLS, 0)
    verb.configs.override(half, "task.tokenizer", pretrained(str(root / "runs" / "codes-seed0")))
    half.steps, half.horizon = 2, 4
    train(half, str(root / "runs" / "codes_generator-seed0"))
    return root, verb.study(CHAIN, str(root / "runs"), json_file=str(root / "s.json"))


def test_a_run_works_with_the_weights_of_the_run_before_it_and_goes_on_where_it_was(chained):
    root, record = chained
    folder = root / "runs" / "codes_generator-seed0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and "held_out/loss" in lines[1]
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    generator, tokenizer = load(str(folder)), load(str(root / "runs" / "codes-seed0"))
    np.testing.assert_array_equal(generator.coder.encode(images), tokenizer.encode(images))
    told = record["runs"][2]
    assert told["after"] == {"task.tokenizer": "codes"} and told["metrics"].keys() == {"bits_per_token"}
    np.testing.assert_allclose(told["metrics"]["bits_per_token"], lines[3]["held_out/loss"] / math.log(2), rtol=1e-5)


def test_stages_of_one_thing_share_a_row(chained):
    _, record = chained
    head, first, second = verb.table(CHAIN, record).splitlines()[1:4]
    assert head.split()[-2:] == ["seconds", "bits"] and first.startswith("codes ") and second.startswith("no revival")
    stages = [record["runs"][0], record["runs"][2]]
    seconds = sum(run["seconds"] for run in stages)
    bits = stages[1]["metrics"]["bits_per_token"]
    assert first.split()[1] == f"{stages[0]['metrics']['psnr']:.2f}"
    assert first.split()[-2:] == [f"{seconds:.2f}", f"{bits:.6f}"] and second.split()[-1] == "–"


def test_a_run_before_that_has_other_weights_now_is_refused(chained, tmp_path):
    root, _ = chained
    shutil.copytree(root / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "codes-seed0" / "checkpoints")
    shutil.copytree(tmp_path / "runs" / "no_revival-seed0" / "checkpoints", tmp_path / "runs/codes-seed0/checkpoints")
    with pytest.raises(verb.StudyError, match="codes_generator-seed0 was trained on other weights"):
        verb.study(CHAIN, str(tmp_path / "runs"), json_file=str(tmp_path / "s.json"))


def test_a_run_alone_waits_for_the_run_before_it(tmp_path):
    with pytest.raises(verb.StudyError, match=r"'codes generator' comes after 'codes', and .* is not finished"):
        verb.study(CHAIN, str(tmp_path / "runs"), json_file=str(tmp_path / "s.json"), only="codes generator")


@pytest.mark.parametrize("name", ["codez", "codes generator"])
def test_a_run_comes_after_one_that_stands_before_it(name):
    late = dataclasses.replace(TELLS, after={"task.tokenizer": name})
    with pytest.raises(ValueError, match=f"comes after '{name}': name a trial that stands before it"):
        dataclasses.replace(CHAIN, trials=(*CHAIN.trials[:2], late))


def test_a_table_from_results_alone(done, tmp_path, monkeypatch, capsys):
    _, record, _ = done
    (tmp_path / "docs" / "studies").mkdir(parents=True)
    (tmp_path / "docs" / "studies" / "smallest.json").write_text(json.dumps(record))
    monkeypatch.setitem(verb.STUDIES, "smallest", SMALLEST)
    monkeypatch.chdir(tmp_path)
    assert main(["study", "smallest", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == SMALLEST.about and lines[2] == "|  | PSNR | swapped | used % | seconds |"
    psnr = record["runs"][1]["metrics"]["psnr"]
    assert lines[5].startswith(f"| no revival | {psnr:.2f} |") and "A note." in lines


def run(name, seed, missing=(), **metrics):
    fixed = {"machine": "2 cores", "date": "2026-01-01 00:00 UTC", "seconds": 1.0}
    return {"run": name, "seed": seed, "metrics": metrics, "missing": dict(missing), **fixed}


def test_mean_and_deviation_over_seeds():
    columns = (Column("A", "a", 1), Column("B %", "b", 0, 100), Column("nowhere", "c"), Column("D", "d"))
    plan = dataclasses.replace(SMALLEST, columns=columns, seeds=(0, 1, 2))
    how = {"d": "maskdit fetch d"}
    runs = [*(run("codes", seed, a=float(seed)) for seed in range(3)), run("no revival", 0, how, a=7.0, b=0.25)]
    text = verb.table(plan, {"runs": runs})
    assert "1.0 ± 1.0" in text and "nowhere" not in text and "over 3 seeds" in text
    last = next(line for line in text.splitlines() if line.startswith("no revival"))
    assert last.split()[2:] == ["7.0", "25", "not", "measured"]
    assert "d: not measured: maskdit fetch d" in text


def test_a_missing_metric_is_measured_again(done, tmp_path):
    root, _, _ = done
    path = root / "runs" / "codes-seed0" / "result.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "missing": {"psnr": "fetch it"}}))
    once = dataclasses.replace(SMALLEST, measure=lambda model, run: Measured({"psnr": float(run.steps)}))
    record = verb.study(once, str(root / "runs"), json_file=str(tmp_path / "s.json"), only="codes")
    assert [result["metrics"]["psnr"] == 4.0 for result in record["runs"]] == [True, False]
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenisers"], "no study 'tokenisers'; did you mean 'tokenizers'"),
        (["fvq", "--only", "FVQQ"], "no run 'FVQQ'; did you mean 'FVQ'"),
        (["fvq", "--markdown", "--json", "no.json"], "run `maskdit study fvq` first"),
    ],
)
def test_bad_input_is_a_sentence(capsys, arguments, message):
    assert main(["study", *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


@pytest.mark.parametrize("name", verb.STUDIES)
def test_every_run_of_a_study_has_a_config_that_builds(name):
    plan = verb.find(name)
    for trial in plan.trials:
        config = verb.configuration(plan, trial, 5)
        assert config.seed == 5 and verb.configs.build(config).steps == config.steps > 0


def test_overrides_that_do_not_fit_are_refused():
    plan = dataclasses.replace(SMALLEST, shared={"task.tokenizer.chanels": 3})
    with pytest.raises(ConfigError, match="did you mean 'channels'"):
        verb.configuration(plan, plan.trials[0], 0)

import json

import numpy as np
import pytest
from PIL import Image

from maskdit.cli import main
from maskdit.train import train
from tests.tiny import SMALL, tiny


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(tiny({"steps": 2}), str(path))
    return str(path)


def test_train_and_sample(tmp_path, capsys):
    run, out, npz = tmp_path / "run", tmp_path / "grid.png", tmp_path / "images.npz"
    overrides = [f"--config.{key}={value}" for key, value in SMALL.items()]
    assert (
        main(["train", "--config", "maskdit_emoji:smoke", "--workdir", str(run), "--config.steps", "2", *overrides])
        == 0
    )
    assert {"config.json", "metrics.jsonl", "checkpoints", "frozen", "loss.png"} <= {
        path.name for path in run.iterdir()
    }
    assert "wrote" in capsys.readouterr().out
    labels = ["--labels", "style=noto,group=food-drink", "--labels", "style=fluent-3d,group=objects"]
    more = ["--steps", "1", "--guidance", "2", "--seed", "3", "--num", "4", "--out", str(out), "--npz", str(npz)]
    assert main(["sample", str(run), *labels, *more]) == 0
    with Image.open(out) as grid:
        assert grid.size[0] > 128
    stored = np.load(npz)
    assert stored["arr_0"].shape == (4, 64, 64, 3) and list(stored["style"]) == ["noto", "fluent-3d"] * 2
    assert main(["sample", str(run), "--npz", str(tmp_path / "drawn.npz"), "--num", "3", "--steps", "1"]) == 0
    assert len(np.load(tmp_path / "drawn.npz")["group"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "style=noto,group=food-drnk"], "no class 'food-drnk'; did you mean 'food-drink'"),
        (["--labels", "style=noto"], "group is missing"),
        (["--labels", "noto"], "NAME=CLASS"),
        (["--ema", "0.1"], "averages 0.995"),
        (["--step", "7"], "keeps the steps 2"),
        (["--steps", "-1"], "1 or more steps"),
        (["--sampler", "heunn"], "use one of heun"),
        (["--sampler", "ancestral"], "DDPM process"),
        (["--out", "no/such/folder/grid.png"], "folder does not exist"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_1(workdir, capsys, arguments, message):
    assert main(["sample", workdir, *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told and told.startswith("maskdit sample: ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.task.network.widht=3"], "did you mean 'width'"),
        (["--config.steps=many"], "takes int"),
        (["--config.task.network.classes.group=9"], "set task.network.classes.group=8"),
        (["--config.task.network.input_size=4"], "set task.network.input_size=8"),
        (["--config.data.source.split=test"], "test"),
        (["--config.steps=0"], "1 or more"),
        (["--config.microbatches=3"], "microbatches"),
        (["--config.evaluation.every=0"], "1 or more"),
        (["--config.data.size=60"], "multiples of 8"),
    ],
)
def test_bad_configs_are_sentences(tmp_path, capsys, overrides, message):
    assert main(["train", "--config", "maskdit_emoji:smoke", "--workdir", str(tmp_path / "run"), *overrides]) == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_folder_of_text_files_and_unwritable_directory(tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("no image")
    begin = ["train", "--config", "maskdit_folder", "--workdir"]
    assert main([*begin, str(tmp_path / "run"), f"--config.data.source.path={texts}"]) == 1
    assert "image" in capsys.readouterr().err
    assert main([*begin, str(texts / "a.txt" / "run"), f"--config.data.source.path={texts}"]) == 1
    assert "--workdir" in capsys.readouterr().err


def test_directory_without_checkpoint(tmp_path, capsys):
    assert main(["sample", str(tmp_path)]) == 1
    assert "holds no checkpoints" in capsys.readouterr().err


def test_describe_counts_what_the_formulas_say(capsys):
    assert main(["describe", "maskdit_emoji"]) == 0
    told = capsys.readouterr().out
    assert "1,990,728" in told
    assert "32 tokens kept, from step 0" in told and "all tokens, from step 1350" in told
    assert "54 passes" in told
    assert main(["describe", "dit_imagenet256:XL/2"]) == 0
    told = capsys.readouterr().out
    assert "711.7 GFLOP" in told and "237.2 GFLOP" in told


def test_metrics_are_json_lines(workdir):
    with open(f"{workdir}/metrics.jsonl") as file:
        assert [json.loads(line)["step"] for line in file] == [1, 2]

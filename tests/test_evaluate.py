"""`maskdit evaluate` of a generator: what it finds, what it writes about it, and what it refuses."""

import importlib.resources
import json

import numpy as np
import pytest
from PIL import Image

import maskdit
from maskdit import config
from maskdit.cli import main
from maskdit.evals import frechet
from maskdit.evals.labels import shipped_classifier
from maskdit.evals.network import find
from maskdit.evals.reference import ScoreError
from maskdit.evaluate import EvaluationError, evaluate
from maskdit.evaluate_images import evaluate_images
from maskdit.samplers.heun import Euler
from tests.tiny import tiny, untrained

METRICS = ("fd", "is", "pr", "prdc", "kd", "mind")
HOW = {"num": 16, "batch": 16, "steps": 1, "guidance": 1.0}


@pytest.fixture(scope="module")
def model():
    return untrained()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("saved") / "model.npz")
    maskdit.save(model, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The generator's config as a file, which names its data."""
    path = tmp_path_factory.mktemp("config") / "mine.py"
    path.write_text("from tests.tiny import tiny\n\n\ndef get_config(variant=''):\n    return tiny()\n")
    return str(path)


@pytest.fixture(scope="module")
def found(saved, tmp_path_factory):
    """The record of all scores, what is written of it, and the folder."""
    folder = tmp_path_factory.mktemp("out")
    made = evaluate(saved, METRICS, seeds=(0, 3), out=str(folder), sampler="euler", **HOW)
    return made, json.loads((folder / "metrics.json").read_text()), folder


def test_the_distance_is_that_of_the_samples_features_from_the_trainings(found, model):
    metrics = found[1]["metrics"]
    classifier = shipped_classifier()
    with config.build(tiny().data).once(65, range(520)) as batches:
        training = np.concatenate([classifier.features(one["image"]) for one in batches])
    for seed, value in zip((0, 3), metrics["fd"]["values"], strict=True):
        images = model.sample(count=16, steps=1, guidance=1.0, seed=seed, sampler=Euler())
        wanted = frechet.frechet_distance(frechet.gaussian(classifier.features(images)), frechet.gaussian(training))
        assert value == pytest.approx(wanted, rel=1e-3)
    # training and held-out images are one split here, of which 16 are taken: far nearer than what noise scores
    fd = metrics["fd"]
    assert 0 < fd["held-out"] < 3 * fd["bias"] and fd["mean"] == np.mean(fd["values"]) > 2 * fd["bias"]
    assert metrics["prdc/coverage"]["held-out"] > 0 and 1 <= metrics["is"]["mean"] <= 8


def test_the_record_has_what_it_takes_to_repeat_it(found, saved):
    made, kept, folder = found
    assert kept == json.loads(json.dumps(made))
    names = {
        "fd",
        "is",
        "is/torch-fidelity",
        "is/torch-fidelity/deviation",
        "pr/precision",
        "pr/recall",
        "kd",
        "kd/deviation",
        "mind",
    }
    assert kept["metrics"].keys() == names | {f"prdc/{name}" for name in ("precision", "recall", "density", "coverage")}
    assert all(len(figure["values"]) == 2 for figure in kept["metrics"].values())
    settings = ("of", "num", "seeds", "sampler", "steps", "guidance", "ema", "step", "labels")
    assert [kept[name] for name in settings] == [saved, 16, [0, 3], "Euler", 1, 1.0, "none", None, "at random"]
    net = find()
    assert kept["features"]["network"] == "emoji-classifier" and kept["features"]["checksum"] == net.checksum
    assert kept["features"]["resize"] == "clean" and "256 levels (uint8)" in kept["rounding"]
    reference = kept["reference"]
    assert "split='val'" in reference["reference"]["source"] and reference["images"] == 520
    assert reference["images compared one by one"] == 520 and "Euler(steps=1" in kept["sampler_settings"]
    assert len(reference["sha256"]) == 64 and reference["checksum"] == net.checksum
    assert "jax" in kept["versions"] and kept["seconds"] > 0 and kept["written"]
    assert [path.name[:10] for path in (folder / "progress").iterdir()] == ["reference-"]


def test_statistics_from_a_file_give_the_same_numbers_and_so_do_the_samples_as_images(
    found, saved, data, tmp_path, capsys
):
    file, images = str(tmp_path / "train.npz"), str(tmp_path / "samples.npz")
    assert main(["evaluate", "--data", data, "--write-reference", file, "--batch", "16"]) == 0
    assert "520 images, emoji-classifier, clean" in capsys.readouterr().out
    made = evaluate(saved, METRICS, seeds=(0,), sampler="euler", reference=file, **HOW)
    assert made["reference"]["file"] == file
    for name, figure in found[1]["metrics"].items():
        assert made["metrics"][name]["mean"] == pytest.approx(figure["values"][0], rel=1e-9), name
    draw = ["--sampler", "euler", "--steps", "1", "--guidance", "1", "--batch", "16"]
    assert main(["sample", saved, "--num", "16", "--npz", images, *draw]) == 0
    again = evaluate_images(images, METRICS, reference=file, batch=16)
    for name, figure in made["metrics"].items():
        assert again["metrics"][name]["values"] == pytest.approx(figure["values"], rel=1e-6)
    assert (tmp_path / "samples.evaluation" / "metrics.json").exists()
    with pytest.raises(ScoreError, match="resize is clean there and tf1-bilinear here"):
        evaluate_images(images, reference=file, resize="tf1-bilinear")


def test_the_command_prints_a_table_and_shows_neighbours(saved, tmp_path, capsys):
    near = tmp_path / "near.png"
    arguments = ["--num", "8", "--batch", "8", "--steps", "1", "--guidance", "1", "--balanced", "--out", str(tmp_path)]
    assert main(["evaluate", saved, "--metrics", "labels,is", *arguments, "--neighbours", str(near)]) == 0
    out = capsys.readouterr().out
    head, *rows = out.splitlines()
    assert head.split()[:4] == ["8", "images", "seed", "0"] and rows[-1] == f"wrote {tmp_path}/metrics.json"
    assert any(row.startswith(f"wrote {near}: ") for row in rows)
    assert any(row.startswith("IS (emoji-classifier)") for row in rows) and "torch-fidelity" not in head
    assert any(row.startswith("nearest training image: median distance") for row in rows)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    # held-out images are the training images here
    assert kept["neighbours"]["held_out"] == 520 and kept["neighbours"]["held_out_median"] == 0
    assert kept["neighbours"]["samples"] == 8 and kept["labels"] == "in turn" and "reference" not in kept
    with Image.open(near) as picture:
        assert picture.size[1] == 8 * 66 + 2


def test_what_cannot_be_measured(saved, capsys):
    with pytest.raises(ScoreError, match=r"fid is a distance by Inception.*ask for fd, or give --network"):
        evaluate(saved, ("fid",))
    with pytest.raises(EvaluationError, match="emoji-vae is a tokenizer: maskdit evaluate --reconstruction emoji-vae"):
        evaluate("emoji-vae")
    classifier = str(importlib.resources.files("maskdit.encoders") / "emoji_classifier.npz")
    with pytest.raises(EvaluationError, match="holds a ClassifierModel, which draws no images"):
        evaluate(classifier)
    with pytest.raises(EvaluationError, match="or more images and seeds, got num=1 and 0 seeds"):
        evaluate(saved, num=1, seeds=())
    with pytest.raises(ValueError, match="is takes 2 images or more, got num=1"):
        evaluate(saved, ("is",), num=1, batch=16, steps=1, guidance=1.0)
    assert main(["evaluate", saved, "--neighbours", "nowhere/near.png", "--metrics", "is"]) == 1
    assert "there is no folder nowhere" in capsys.readouterr().err
    for more, said in ((["--num", "0"], "num=0"), (["--batch", "0"], "a batch of 0"), (["--seeds", "0"], "0 seeds")):
        assert main(["evaluate", saved, *more]) == 1 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "measures one thing: a CHECKPOINT, --images, or --reconstruction with --data"),
        (["run", "--images", "x.npz"], "measures one thing"),
        (["--images", "x.npz", "--reconstruction", "emoji-vae"], "measures one thing"),
        (["run", "--write-reference", "y.npz"], "measures one thing"),
        (["--reconstruction", "emoji-vae"], "say which with --data"),
        (["run", "--data", "maskdit_emoji"], "--data does not go with a checkpoint"),
        (["run", "--lpips", "lpips"], "--lpips does not go with a checkpoint"),
        (["--images", "x.npz", "--steps", "3"], "--steps does not go with --images"),
        (["--images", "x.npz", "--seeds", "3"], "--seeds does not go with --images"),
        (["--images", "x.npz", "--ema", "none"], "--ema does not go with --images"),
        (["--images", "x.npz", "--balanced"], "--balanced does not go with --images"),
        (["--images", "x.npz", "--size", "8"], "--size does not go with --images"),
        (["--reconstruction", "emoji-vae", "--data", "d", "--guidance", "2"], "--guidance does not go with --recon"),
        (["--reconstruction", "emoji-vae", "--data", "d", "--sweep", "steps=1"], "--sweep does not go with --recon"),
        (["--images", "x.npz", "--write-reference", "y.npz", "--num", "3"], "--num does not go with --write-reference"),
        (["--data", "d", "--write-reference", "y.npz", "--reference", "z"], "--reference does not go with --write-ref"),
        (["--write-reference", "y.npz"], "statistics are of --images or of --data: give one"),
        (["--images", "x.npz", "--data", "d", "--write-reference", "y.npz"], "give one of them"),
        (["--images", "x.npz", "--write-reference", "y.pt"], "ends in .npz, got y.pt"),
        (["run", "--sweep", "steps=1,2", "--neighbours", "n.png"], "goes without --sweep"),
        (
            ["run", "--metrics", "fd,fud"],
            "metrics are labels, bits, fd, fid, sfid, is, kd, kid, pr, prdc, mind; got fud",
        ),
        (["run", "--metrics", ","], "got none"),
        (["--images", "x.npz", "--metrics", "fd,labels"], "labels ask a model: of images there are fd, fid"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(capsys, arguments, message):
    assert main(["evaluate", *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told and told.startswith("maskdit evaluate: ")

"""`maskdit evaluate` of images of whatever made them, and of tokenizers."""

import json

import numpy as np
import pytest
from PIL import Image

from maskdit.cli import main
from maskdit.data.emoji import Emoji
from maskdit.evals import frechet
from maskdit.evals.labels import shipped_classifier
from maskdit.evals.reference import ScoreError
from maskdit.evaluate import EvaluationError
from maskdit.evaluate_images import evaluate_images, evaluate_tokenizer
from tests.encoded import write_pictures, write_tokenizer
from tests.features import images


def written(folder, given):
    """Images as files, in the order of their names."""
    folder.mkdir()
    for i, image in enumerate(given):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """24 emoji as a folder, and 30 others as a file."""
    path, source = tmp_path_factory.mktemp("emoji"), Emoji("val")
    pictures = np.stack([source[i]["image"] for i in range(54)])
    np.savez(path / "others.npz", arr_0=pictures[24:], labels=np.arange(30))
    np.savez(path / "few.npz", arr_0=pictures[:24])
    return written(path / "few", pictures[:24]), str(path / "few.npz"), str(path / "others.npz"), pictures


def test_a_folder_and_a_file_of_the_same_images_have_the_same_figures(emoji, tmp_path, capsys):
    folder, file, others, pictures = emoji
    metrics = ("fd", "is", "prdc")
    records = [
        evaluate_images(given, metrics, reference=others, batch=16, out=str(tmp_path / str(i)))
        for i, given in enumerate((folder, file))
    ]
    assert records[0]["metrics"] == records[1]["metrics"] and records[0]["sha256"] != records[1]["sha256"]
    classifier = shipped_classifier()
    sides = [frechet.gaussian(classifier.features(given)) for given in (pictures[:24], pictures[24:])]
    assert records[0]["metrics"]["fd"]["mean"] == pytest.approx(frechet.frechet_distance(*sides), rel=1e-3)
    kept = json.loads((tmp_path / "1" / "metrics.json").read_text())
    assert (kept["of"], kept["num"], kept["reference"]["file"], kept["reference"]["images"]) == (file, 24, others, 30)
    assert "few images (24 for 64 features)" in capsys.readouterr().out
    # the reference as a folder is cut into squares of the images' size: here they are such
    again = evaluate_images(others, ("fd",), reference=folder, batch=16, out=str(tmp_path / "2"))
    assert again["metrics"]["fd"]["mean"] == pytest.approx(kept["metrics"]["fd"]["mean"], rel=1e-6)
    first = evaluate_images(file, ("fd",), 20, reference=others, batch=16, out=str(tmp_path / "3"))
    assert first["num"] == 20 and first["metrics"]["fd"]["mean"] != kept["metrics"]["fd"]["mean"]


def test_images_worse_by_degrees_lie_further_away(emoji, tmp_path):
    *_, others, pictures = emoji
    rng = np.random.default_rng(0)
    made = []
    for i, spread in enumerate((0, 40, 120)):
        noisy = np.clip(pictures[:24] + rng.normal(0, spread, pictures[:24].shape), 0, 255).astype(np.uint8)
        np.savez(tmp_path / f"{i}.npz", arr_0=noisy)
        record = evaluate_images(str(tmp_path / f"{i}.npz"), reference=others, batch=16)
        made.append(record["metrics"]["fd"]["mean"])
    assert made[0] < made[1] < made[2]


def test_images_that_cannot_be_scored_are_told(tmp_path, capsys):
    given = images(6, size=16)
    floats = (given / 255).astype(np.float32)
    wrong = floats.copy()
    wrong[4, 0, 0, 0] = np.nan
    mixed = written(tmp_path / "mixed", [*given[:2], images(1, size=20)[0]])
    (tmp_path / "empty").mkdir()
    for array, message in (
        (floats, "float32 [6, 16, 16, 3], not uint8: its numbers go from"),
        (wrong, "1 of 6 images hold NaN or infinite numbers, the first is image 4"),
        (given[..., :1], "1 channels (grey)"),
        (np.zeros((6, 16, 16, 4), np.uint8), "4 channels (transparency)"),
        (given.transpose(0, 3, 1, 2), "channels come before height and width"),
        (given[:0], "no images in it"),
        (mixed, "000.png is 16 x 16 and 002.png 20 x 20"),
        (str(tmp_path / "empty"), "has no images"),
        (str(tmp_path / "missing"), "does not exist"),
    ):
        path = array if isinstance(array, str) else str(tmp_path / "x.npz")
        if path is not array:
            np.savez(path, arr_0=array)
        assert main(["evaluate", "--images", path, "--metrics", "is"]) == 1
        told = capsys.readouterr().err
        assert message in told and told.startswith("maskdit evaluate: ") and "Traceback" not in told


def test_scores_that_lack_something(emoji):
    _, file, others, _ = emoji
    with pytest.raises(ScoreError, match="compare with a reference: give --reference"):
        evaluate_images(file)
    with pytest.raises(ScoreError, match="holds 24 images, and 25 are asked for"):
        evaluate_images(file, num=25, reference=others)
    with pytest.raises(EvaluationError, match="num=0"):
        evaluate_images(file, num=0, reference=others)


def test_a_tokenizer_is_measured_by_what_it_gives_back(emoji, tmp_path, capsys):
    folder, *_ = emoji
    out = str(tmp_path / "out")
    arguments = ["--data", folder, "--size", "64", "--num", "16", "--batch", "16", "--out", out, "--metrics", "fd,kd"]
    assert main(["evaluate", "--reconstruction", "emoji-vae", *arguments]) == 0, capsys.readouterr().err
    table = capsys.readouterr().out
    assert "rFD (emoji-classifier)" in table and "rKD (emoji-classifier)" in table
    kept = json.loads((tmp_path / "out" / "metrics.json").read_text())
    figures = {name: figure["mean"] for name, figure in kept["metrics"].items()}
    assert 20 < figures["psnr_uint8"] < 50 and 0.6 < figures["ssim_wang"] < 1 and "psnr_pooled" in figures
    assert 0 < figures["fd"] < 20 and kept["num"] == 16 and kept["data"]["records"] == 24
    assert kept["reference"]["images"] == 16 and kept["reference"]["reference"] == kept["data"]
    # against other images than were given to it
    other = evaluate_tokenizer("emoji-vae", folder, ("fd",), 16, size=64, reference=emoji[2], batch=16, out=out)
    assert other["metrics"]["fd"]["mean"] > figures["fd"] and other["reference"]["file"] == emoji[2]


def test_a_tokenizer_is_measured_without_scores(tmp_path, capsys):
    tokenizer = write_tokenizer(tmp_path / "vae.npz")
    pictures = write_pictures(tmp_path / "pictures", count=5, broken=(3,))
    small = ["--data", pictures, "--size", "16", "--batch", "8"]
    assert main(["evaluate", "--reconstruction", tokenizer, *small, "--metrics", "none"]) == 0, capsys.readouterr().err
    kept = json.loads((tmp_path / "vae.evaluation" / "metrics.json").read_text())
    assert kept["num"] == 4 and "features" not in kept and "fd" not in kept["metrics"]
    with pytest.raises(EvaluationError, match="labels ask a generator: of reconstructions there are fd"):
        evaluate_tokenizer(tokenizer, pictures, ("labels",), size=16)
    assert main(["evaluate", "--reconstruction", tokenizer, "--data", pictures, "--metrics", "none"]) == 1
    assert "give --size" in capsys.readouterr().err

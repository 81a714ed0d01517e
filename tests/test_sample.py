"""Sampling and editing with a token model, in Python and from the command line."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

import maskdit
from maskdit import sample as verb
from maskdit.cli import main
from maskdit.contracts import ModelError
from maskdit.data.emoji import Emoji
from maskdit.evals import samples
from maskdit.evals.pictures import grid
from maskdit.networks.model import GeneratorModel
from maskdit.sample import SAMPLERS, sampler_named
from maskdit.samplers.heun import Heun
from maskdit.samplers.temperature import Constant
from maskdit.samplers.tokens import AncestralUnmasking, Confidence
from maskdit.samplers.unmask import halton, most_confident
from tests.tokens import tiny_tokens

LABELS = {"style": "noto", "group": "objects"}
PLAIN = {"steps": 2, "guidance": 1.0}


@pytest.fixture(scope="module")
def model():
    return tiny_tokens()


@pytest.fixture(scope="module")
def picture():
    return Emoji("val")[3]["image"]


@pytest.fixture(scope="module")
def mask():
    """Pixels inside of the tokens in rows 2 to 4 and columns 0 to 3, not all of them."""
    mask = np.zeros((64, 64), bool)
    mask[20:40, :30] = True
    return mask


@pytest.fixture(scope="module")
def saved(model, picture, mask, tmp_path_factory):
    """A folder with the model, the picture and the mask as files."""
    folder = tmp_path_factory.mktemp("saved")
    maskdit.save(model, str(folder / "model.npz"))
    Image.fromarray(picture).save(folder / "picture.png")
    Image.fromarray(mask).save(folder / "mask.png")  # one bit deep
    return folder


def test_the_last_of_a_trajectory_are_the_samples(model):
    seen = model.sample(LABELS, count=3, trajectory=True, batch=2, steps=3)
    assert seen.shape == (3, 3, 64, 64, 3)
    np.testing.assert_array_equal(seen[:, -1], model.sample(LABELS, count=3, steps=3))
    assert not np.array_equal(seen[:, 0], seen[:, -1])


def test_an_edit_keeps_the_tokens_and_pixels_that_it_should(model, picture, mask):
    made = model.sample(LABELS, image=picture, mask=mask, count=4, **PLAIN)
    assert made.shape == (4, 64, 64, 3)
    np.testing.assert_array_equal(made[:, ~mask], np.broadcast_to(picture[~mask], made[:, ~mask].shape))
    assert len({one.tobytes() for one in made}) == 4, "each is another one"
    stored = np.broadcast_to(picture, (2, *picture.shape))
    seen = model.sample(LABELS, image=stored, mask=mask, trajectory=True, **PLAIN)  # as many as images
    np.testing.assert_array_equal(seen[:, -1], made[:2])
    np.testing.assert_array_equal(seen[:, 0, ~mask], made[:2, ~mask])


def test_an_edit_of_everything_is_a_sample(model, picture):
    everywhere = np.ones((64, 64), bool)
    np.testing.assert_array_equal(
        model.sample(LABELS, image=picture, mask=everywhere, count=2, seed=4, **PLAIN),
        model.sample(LABELS, count=2, seed=4, **PLAIN),
    )


def test_no_temperature_leaves_no_chance(model):
    cold = model.sample(LABELS, count=3, temperature=0.0, **PLAIN)
    assert (cold == cold[0]).all()
    assert not np.array_equal(model.sample(LABELS, count=1, **PLAIN)[0], cold[0])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"steps": 65}, "steps are 1 to 64, got 65"),
        ({"steps": 0}, "1 or more steps"),
        ({"sampler": Heun()}, "makes tokens"),
        ({"sampler": AncestralUnmasking(8), "temperature": 0.0}, "positive"),
        ({"temperature": -1.0}, "0 or more"),
        ({"image": "all"}, "both an image and a mask"),
        ({"mask": "all"}, "both an image and a mask"),
        ({"image": "all", "mask": "none"}, "black everywhere"),
        ({"image": "all", "mask": "small"}, r"mask is \[32, 64\]"),
        ({"image": "small", "mask": "small"}, r"64 x 64 .*\[32, 64, 3\]"),
        ({"image": "grey", "mask": "all"}, r"\[64\]"),
        ({"image": "float", "mask": "all"}, "uint8, got float"),
        ({"image": "three", "mask": "all", "count": 2}, "2 images are to be made and 3 to be edited"),
        ({"text": "prompts.npz"}, "takes no texts"),
    ],
)
def test_bad_requests_are_answered_before_anything_runs(model, asked, message):
    images = {
        "all": np.zeros((64, 64, 3), np.uint8),
        "small": np.zeros((32, 64, 3), np.uint8),
        "grey": np.zeros((64, 64), np.uint8),
        "float": np.zeros((64, 64, 3)),
        "three": np.zeros((3, 64, 64, 3), np.uint8),
    }
    masks = {"all": np.ones((64, 64), bool), "none": np.zeros((64, 64), bool), "small": np.ones((32, 64), bool)}
    given = {**asked}
    for name, arrays in (("image", images), ("mask", masks)):
        if name in given:
            given[name] = arrays[given[name]]
    with pytest.raises(ValueError, match=message):
        model.sample(LABELS, **{"count": 1, **given})


def test_guidance_needs_dropped_labels(model):
    deaf = dataclasses.replace(model, task=dataclasses.replace(model.task, label_drop=0.0))
    with pytest.raises(ModelError, match="label_drop=0"):
        deaf.sample(LABELS, count=1)


def test_samplers_by_name_keep_what_the_model_has():
    own = Confidence(steps=5, schedule="cosine", least=0, temperature=3.0, counted=True, reuse=True)
    assert sampler_named("confidence", own) is own
    spread = sampler_named("halton", own)
    assert (spread.policy, spread.steps, spread.schedule, spread.reuse) == (halton, 5, "cosine", True)
    assert spread.temperature == Constant(1.0)
    assert sampler_named("confidence", spread).policy is most_confident
    assert sampler_named("unmasking", own).steps == sampler_named("heun", own).steps == 5
    assert sampler_named("raster", own).steps is None
    assert sampler_named("unmasking", SAMPLERS["raster"]) == AncestralUnmasking()
    with pytest.raises(ModelError, match=r"one of heun, .*, raster"):
        sampler_named("gibbs", own)


def test_edit_and_animation_from_the_command_line(saved, model, picture, mask, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    edit = ["--image", "picture.png", "--mask", "mask.png", "--labels", "style=noto,group=objects"]
    plain = ["--steps", "2", "--guidance", "1", "--temperature", "1.5"]
    assert main(["sample", "model.npz", *edit, *plain, "--trajectory", "made.gif", "--out", "edit.png"]) == 0
    wrote = capsys.readouterr().out.splitlines()
    assert wrote == ["wrote made.gif: 2 steps of 4 images", "wrote edit.png: 4 images"]
    made = model.sample(LABELS, image=picture, mask=mask, count=4, temperature=1.5, **PLAIN)
    kept = np.where(mask[..., None], np.uint8(128), picture)
    with Image.open("edit.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), grid(np.stack([picture, kept, *made])))
    with Image.open("made.gif") as animation:
        assert animation.n_frames == 2 and animation.size == grid(made).shape[1::-1]
    spread = ["--sampler", "halton", "--num", "2", "--trajectory", "made.png"]
    assert main(["sample", "model.npz", *plain, *spread]) == 0
    with Image.open("made.png") as sheet:
        assert sheet.size == (2 * 66 + 2, 2 * 66 + 2)


def test_many_images_are_drawn_in_parts_and_go_on_after_an_interrupt(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samples, "PART", 8)
    monkeypatch.setattr(verb, "SHOWN", 4)
    labels = ["--labels", "style=noto,group=objects", "--labels", "style=fluent-3d,group=objects"]
    asked = ["sample", str(saved / "model.npz"), "--steps", "2", "--num", "20", "--batch", "8", *labels]
    assert main([*asked, "--guidance", "1", "--npz", "whole.npz", "--out", "whole.png"]) == 0
    wrote = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote")]
    told = ["wrote whole.npz: arr_0 [20, 64, 64, 3] uint8, group, style", "wrote whole.png: the first 4 of 20 images"]
    assert wrote == told
    whole = np.load("whole.npz")
    assert list(whole["style"]) == ["noto", "fluent-3d"] * 10
    with Image.open("whole.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), grid(whole["arr_0"][:4]))

    calls, sample = [], GeneratorModel.sample

    def interrupted(self, *args, **kw):
        calls.append(kw["first"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, *args, **kw)

    cut = [*asked, "--npz", "cut.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(GeneratorModel, "sample", interrupted)
        assert main([*cut, "--guidance", "1"]) == 130
    assert sorted(os.listdir("cut.npz.parts")) == [".lock", "000000.npy", "000001.npy", "manifest.json"]
    assert main([*cut, "--guidance", "2"]) == 1
    assert "guidance was 1.0, and is 2.0 now" in capsys.readouterr().err
    assert main([*cut, "--guidance", "1"]) == 0
    assert calls == [0, 8, 16] and sorted(os.listdir()) == ["cut.npz", "whole.npz", "whole.png"]
    with open("cut.npz", "rb") as first, open("whole.npz", "rb") as second:
        assert first.read() == second.read()


def test_a_picture_shows_the_first_of_many(saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    monkeypatch.setattr(verb, "SHOWN", 2)
    assert main(["sample", "model.npz", "--steps", "2", "--guidance", "1", "--num", "5"]) == 0
    assert capsys.readouterr().out == "wrote samples.png: the first 2 of 5 images; --npz FILE keeps all\n"


def write_files(folder):
    """Files that are no good."""
    Image.new("RGB", (32, 32)).save(folder / "small.png")
    Image.new("L", (64, 64)).save(folder / "black.png")
    (folder / "text.png").write_text("no image")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "picture.png"], "both --image and --mask"),
        (["--image", "text.png", "--mask", "mask.png"], "--image text.png is not a readable image"),
        (["--image", "none.png", "--mask", "mask.png"], "--image none.png cannot be read (No such file"),
        (["--image", "small.png", "--mask", "mask.png"], "64 x 64"),
        (["--image", "picture.png", "--mask", "small.png"], "mask is [32, 32]"),
        (["--image", "picture.png", "--mask", "black.png"], "black everywhere"),
        (["--trajectory", "made.mp4"], ".gif"),
        (["--trajectory", "no/folder/made.gif"], "folder does not exist"),
        (["--sampler", "heun"], "makes tokens"),
        (["--sampler", "raster"], "autoregressive"),
        (["--text-embeddings", "prompts.npz"], "takes no texts"),
    ],
)
def test_bad_input_is_a_sentence(saved, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(saved)
    write_files(saved)
    assert main(["sample", "model.npz", "--steps", "1", *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told and told.startswith("maskdit sample: ")


def test_transparency_and_grey_of_a_mask(tmp_path, picture):
    from maskdit.sample import _edit

    Image.fromarray(picture).save(tmp_path / "picture.png")
    shades = np.zeros((64, 64, 4), np.uint8)
    shades[..., 3] = 255
    shades[:2, :, :3] = [[[127]], [[128]]]
    shades[2, :, 3] = 0  # transparent black
    Image.fromarray(shades).save(tmp_path / "mask.png")
    read = _edit(str(tmp_path / "picture.png"), str(tmp_path / "mask.png"))
    np.testing.assert_array_equal(np.flatnonzero(read["mask"].all(1)), [1, 2])
    np.testing.assert_array_equal(read["image"], picture)

"""`maskdit evaluate --sweep`: all points in one table, one plot and one record; those that are there stay."""

import json

import numpy as np
import pytest
from PIL import Image

import maskdit
from maskdit import evaluate_sweep as verb
from maskdit.cli import main
from maskdit.evals.report import Figure, record
from maskdit.evaluate import EvaluationError, evaluate
from maskdit.evaluate_sweep import evaluate_sweep
from tests.features import images
from tests.tiny import untrained

HOW = {"num": 16, "batch": 16, "guidance": 1.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A generator, and images to compare with."""
    folder = tmp_path_factory.mktemp("saved")
    maskdit.save(untrained(), str(folder / "model.npz"))
    np.savez(folder / "reference.npz", arr_0=images(30, size=64))
    return str(folder / "model.npz"), str(folder / "reference.npz")


def test_every_point_is_what_it_is_alone(saved, tmp_path, capsys):
    model, reference = saved
    fixed = ["--num", "16", "--batch", "16", "--guidance", "1", "--reference", reference, "--out", str(tmp_path)]
    assert main(["evaluate", model, "--sweep", "steps=1,2", *fixed]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    kept = json.loads((tmp_path / "sweep.json").read_text())
    assert [point["steps"] for point in kept["points"]] == [1, 2] and "metrics" not in kept
    alone = evaluate(model, ("fd", "is"), reference=reference, steps=2, out=str(tmp_path / "alone"), **HOW)
    assert kept["points"][1]["metrics"] == json.loads(json.dumps(alone["metrics"]))
    assert kept["points"][1]["steps"] == 2 and kept["points"][1]["sampler"] == "Heun"
    means = [point["metrics"]["fd"]["mean"] for point in kept["points"]]
    assert kept["best"]["of"] == "fd" and kept["best"]["fd"] == min(means)
    assert kept["best"]["steps"] == 1 + int(np.argmin(means))
    assert kept["features"]["network"] == "emoji-classifier" and kept["reference"]["file"] == reference
    head = next(line for line in out.splitlines() if line.split()[:2] == ["steps", "fd"])
    assert head and f"wrote {tmp_path / 'sweep.png'}" in out and "is best at steps" in out
    with Image.open(tmp_path / "sweep.png") as picture:
        assert np.asarray(picture.convert("L")).min() < 128


class Stub:
    """Measures nothing, and is cut off after so many points."""

    def __init__(self, most=10**9):
        self.seen, self.most = [], most

    def __call__(self, model, metrics, settings, ready):
        if len(self.seen) == self.most:
            raise KeyboardInterrupt
        self.seen.append((settings.sampling["guidance"], settings.sampling["steps"]))
        return record([Figure("fd", (float(len(self.seen)),), {}, unit="")], {}, 0.0)


POINTS = [(1.0, 1), (1.0, 2), (2.0, 1), (2.0, 2)]


def test_a_sweep_that_was_interrupted_goes_on_with_what_it_lacks(saved, tmp_path, monkeypatch):
    model = str(tmp_path / "model.npz")
    how = {"metrics": ("fd",), "num": 16, "batch": 16}

    def swept(stub, workdir=model, **more):
        monkeypatch.setattr(verb, "_measure", stub)
        found = evaluate_sweep(workdir, ["guidance=1:2:1", "steps=1,2"], **{**how, **more})
        return stub.seen, [point["metrics"]["fd"]["mean"] for point in found["points"]]

    monkeypatch.setattr(verb.sweep, "plot", lambda *_: None)
    maskdit.save(untrained(), model)
    stub = Stub(3)
    with pytest.raises(KeyboardInterrupt):
        swept(stub)
    assert stub.seen == POINTS[:3]
    # its own training images were the reference, whose statistics are read from a file from then on
    assert swept(Stub()) == (POINTS[3:], [1.0, 2.0, 3.0, 1.0])
    assert swept(Stub(0))[0] == []
    assert swept(Stub(), num=17)[0] == POINTS
    assert swept(Stub(), reference=saved[1])[0] == POINTS
    maskdit.save(untrained(seed=1), model)  # another model of the same name
    assert swept(Stub())[0] == POINTS


def test_what_cannot_be_swept(saved):
    model, reference = saved
    with pytest.raises(EvaluationError, match="guidance is swept and given: leave --guidance out"):
        evaluate_sweep(model, ["guidance=1,2"], reference=reference, **HOW)
    with pytest.raises(ValueError, match="'guidence' cannot be swept"):
        evaluate_sweep(model, ["guidence=1,2"], reference=reference)
    with pytest.raises(EvaluationError, match="is a tokenizer"):
        evaluate_sweep("emoji-vae", ["steps=1,2"])

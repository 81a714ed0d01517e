"""Scores in the training loop, and the best checkpoint by them."""

import dataclasses
import json
import pathlib

import chex
import jax
import numpy as np
import pytest

from maskdit import config as configs
from maskdit.arguments import parser
from maskdit.evals import network, scoring
from maskdit.evals.reference import ScoreError
from maskdit.evals.scoring import Scoring
from maskdit.model import load
from maskdit.train import train
from maskdit.training import loop_scores
from maskdit.training.checkpoint import CheckpointError
from maskdit.training.evaluation import Evaluation
from tests.tiny import tiny

VALUES = {2: 5.0, 4: 3.0, 6: 4.0, 8: 6.0, 9: 7.0, 10: 8.0, 12: 1.0}
"""What the scores of steps are said to be."""


def scoring_run(overrides):
    return tiny({"evaluation.scores": ("fd",), "evaluation.samples": 8, "horizon": 20, **overrides})


def scores_of(workdir):
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return {one["step"]: one["score/fd"] for one in map(json.loads, lines) if "score/fd" in one}


def kept(workdir):
    return sorted(int(path.name) for path in (pathlib.Path(workdir) / "checkpoints").iterdir())


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, arr_0=np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8))
    return str(path)


def test_scores_are_those_of_averaged_weights_by_the_runs_sampler(tmp_path, reference):
    """On a mesh that cuts the weights; what the checkpoint gives is the same figure."""
    cut = {"mesh.data": 2, "mesh.fsdp": 4, "steps": 3, "ema": (0.5,), "checkpoints.every": 100}
    train(scoring_run({"evaluation.scores_every": 2, "evaluation.reference": reference, **cut}), str(tmp_path / "run"))
    found = scores_of(tmp_path / "run")
    assert sorted(found) == [2, 3]
    ready = scoring.prepare(("fd",), network.find(), reference, batch=8)
    step = min(found, key=found.get)
    averaged, raw = (load(str(tmp_path / "run"), step="best", ema=ema) for ema in ("default", "none"))
    assert averaged.step == step
    value = ready.of_samples(averaged, 8, 0)["fd"]
    assert found[step] == pytest.approx(value, rel=1e-4)
    assert abs(ready.of_samples(raw, 8, 0)["fd"] - value) > 2 * abs(found[step] - value)
    record = json.loads((tmp_path / "run" / "evaluation" / "loop.json").read_text())
    assert record["best"]["step"] == step and record["how"]["samples"] == 8


def test_the_best_checkpoint_stays_through_a_kill_until_it_is_beaten(tmp_path, reference, monkeypatch):
    settings = {"evaluation.scores_every": 2, "checkpoints.every": 3, "checkpoints.keep": 1, "steps": 9}
    settings["evaluation.reference"] = reference
    killed = []

    def of_samples(self, model, num, seed, **sampling):
        if model.step == 8 and killed == [False]:
            killed[0] = True
            raise KeyboardInterrupt
        return {"fd": VALUES[model.step]}

    monkeypatch.setattr(Scoring, "of_samples", of_samples)
    whole = train(scoring_run(settings), str(tmp_path / "whole"))
    killed.append(False)
    with pytest.raises(KeyboardInterrupt):
        train(scoring_run(settings), str(tmp_path / "run"))
    assert kept(tmp_path / "run") == [4, 6]  # 4, which was due for nothing, is the best; 2 was, and went
    state = train(scoring_run(settings), str(tmp_path / "run"))
    chex.assert_trees_all_equal(*(jax.tree.map(np.asarray, one.params) for one in (state, whole)))
    for name in ("whole", "run"):
        assert kept(tmp_path / name) == [4, 9]
        assert load(str(tmp_path / name), step="best").step == 4
        assert scores_of(tmp_path / name) == {step: value for step, value in VALUES.items() if step < 10}
    train(scoring_run({**settings, "steps": 12}), str(tmp_path / "run"))
    assert kept(tmp_path / "run") == [12] and load(str(tmp_path / "run"), step="best").step == 12
    (tmp_path / "run" / "evaluation" / "loop.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint with a score"):
        load(str(tmp_path / "run"), step="best")


def test_a_network_or_reference_that_cannot_be_had_is_refused_before_training(tmp_path):
    for overrides, error, sentence in (
        ({"evaluation.scores": ("fid",)}, ScoreError, "the network here is emoji-classifier"),
        ({"evaluation.reference": str(tmp_path / "no.npz")}, ScoreError, "there is no .*no.npz"),
        ({"evaluation.best": "kd"}, ValueError, "'kd' is no figure of the scores fd"),
        ({"sampler": None, "evaluation.images": 0}, loop_scores.ScoreError, "names no sampler"),
    ):
        with pytest.raises(error, match=sentence):
            train(scoring_run(overrides), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_names_and_numbers_are_checked():
    for fields, sentence in (
        ({"scores": ("fdd",)}, "there is no score 'fdd'; did you mean 'fd'"),
        ({"scores": ("pr",), "best": "pr/precison"}, "did you mean 'pr/precision'"),
        ({"best": "fd"}, r"of the scores \(none\)"),
        ({"scores_every": 0}, "evaluation.scores_every must be 1 or more"),
        ({"samples": 1}, "evaluation.samples must be 2 or more"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Evaluation(**fields)
    assert [parser().parse_args(["export", "a", "b", "--step", step]).step for step in ("best", "7")] == ["best", 7]
    assert (Evaluation(scores=("pr", "fd")).figure, Evaluation(scores=("kd", "is")).figure) == ("pr/precision", "kd")


@dataclasses.dataclass(frozen=True)
class Whole:
    """Gives every image back, `shade` levels darker."""

    shade: int = 0

    def reconstruct(self, images, text=None):
        return np.maximum(images, self.shade) - np.uint8(self.shade)


def test_a_tokenizer_is_scored_on_the_held_out_images_it_gives_back(tmp_path):
    fields = {"evaluation.scores": ("fd",), "evaluation.samples": 24, "evaluation.batch": 16}
    config = configs.load("vqgan_emoji:smoke", fields)
    run = configs.build(config)
    scores = loop_scores.prepare(run.task, run, config, str(tmp_path))
    scores.resume(0)
    assert scores.measure(5, Whole())["score/fd"] == pytest.approx(0, abs=1e-4)
    assert scores.measure(10, Whole(shade=100))["score/fd"] > 1
    assert scores.scored.best([5, 10]) == 5

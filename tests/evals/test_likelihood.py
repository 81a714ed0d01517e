"""Bits per token, on models whose likelihood is known."""

import dataclasses
import json
import math
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import maskdit
from maskdit import config as configs
from maskdit.config import spec
from maskdit.contracts import Layout, Prediction, null_condition
from maskdit.data.emoji import Emoji
from maskdit.data.loader import Loader
from maskdit.evals.likelihood import LikelihoodError, bits_per_token
from maskdit.evaluate import evaluate
from maskdit.networks.model import GeneratorModel
from maskdit.processes.autoregressive import Autoregressive
from maskdit.processes.edm import EDM
from maskdit.processes.masked import BatchCounts, Masked, MaskedDiffusion
from maskdit.tasks.generator import Generator
from tests.tokens import tiny_tokens

HELD_OUT = spec(Loader, source=spec(Emoji, split="val", labels=("style",)), size=64, flip=False, shuffle=False)
STYLES = Emoji("val").vocabulary["style"]


class Told(nn.Module):
    """Logits of a parameter by label, the same at each place; ids do not matter."""

    vocabulary: int = 1024
    grid: tuple[int, ...] = (8, 8)
    classes: Mapping[str, int] = nn.FrozenDict({"style": 4})

    @property
    def layout(self):
        return Layout(grid=self.grid, vocabulary=self.vocabulary)

    def null(self, cond):
        return null_condition(cond, self.classes)

    @nn.compact
    def __call__(self, x, t, cond, *, keep=None, taps=(), draw=None, train=False, **kw):
        table = self.param("table", nn.initializers.zeros, (5, self.vocabulary))
        rows = table[cond.labels["style"]]
        return Prediction(x=jnp.broadcast_to(rows[:, None], (*x.shape, self.vocabulary)))


def told(process, table):
    vqgan = maskdit.load("emoji-vqgan")
    task = Generator(network=Told(), process=process, tokenizer=vqgan.tokenizer)
    variables = {"params": {"network": {"table": np.asarray(table, np.float32)}}, "frozen": {"tokenizer": vqgan.own}}
    config = configs.load("maskgit_emoji:smoke", {})
    config.held_out = HELD_OUT
    return GeneratorModel(task, variables, {"style": STYLES}, config=config)


@pytest.fixture(scope="module")
def held_out():
    """Ids and styles of the first eight of 520 held-out images, spread."""
    with configs.build(HELD_OUT).ordered(8, 8) as batches:
        batch = next(batches)
    return maskdit.load("emoji-vqgan").encode(batch["image"]), batch["style"]


@pytest.fixture(scope="module")
def table(held_out):
    """Logits that differ by label."""
    return np.random.default_rng(0).normal(size=(5, 1024)) * 2


def exact(table, ids, styles):
    rows = table[styles]
    log = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    return -np.take_along_axis(log, ids, 1).mean(1) / math.log(2)


def test_an_autoregressive_model_is_measured_exactly(held_out, table):
    found = bits_per_token(told(Autoregressive(), table), num=8, seeds=(0, 3), batch=8)
    wanted = exact(table, *held_out)
    np.testing.assert_allclose(found.means, [wanted.mean()] * 2, rtol=1e-5)
    np.testing.assert_allclose(found.error, wanted.std(ddof=1) / math.sqrt(8), rtol=1e-4)
    assert (found.images, found.uniform, found.kind) == (8, 10.0, "exact")


@pytest.mark.parametrize("process", [Masked(), MaskedDiffusion()], ids=["masked", "diffusion"])
def test_the_bound_is_tight_for_a_model_of_independent_tokens(held_out, table, process):
    found = bits_per_token(told(process, table), num=8, seeds=(0, 1), batch=8)
    assert abs(np.mean(found.means) - exact(table, *held_out).mean()) < 4 * found.error
    assert found.means[0] != found.means[1] and "bound" in found.kind
    same = bits_per_token(told(process, np.zeros((5, 1024))), num=8, batch=3)
    np.testing.assert_allclose(same.means, [10.0], rtol=1e-5)  # batches of 3: the last one is filled up
    assert same.error < 1e-5 and same.images == 8


def test_what_cannot_be_measured_is_told():
    model = told(Masked(), np.zeros((5, 1024)))
    swapped = lambda process: dataclasses.replace(model, task=dataclasses.replace(model.task, process=process))  # noqa: E731
    with pytest.raises(LikelihoodError, match="model of kind EDM"):
        bits_per_token(swapped(EDM()))
    with pytest.raises(LikelihoodError, match="model of kind TokenizerModel"):
        bits_per_token(maskdit.load("emoji-vqgan"))
    with pytest.raises(LikelihoodError, match="told how many"):
        bits_per_token(swapped(Masked(counts=BatchCounts())))
    with pytest.raises(LikelihoodError, match="names no held-out data"):
        bits_per_token(dataclasses.replace(model, config=None))
    with pytest.raises(LikelihoodError, match="num=1"):
        bits_per_token(model, num=1)


def test_figures_of_a_token_model_are_printed_and_kept(tmp_path, capsys):
    path = tmp_path / "model.npz"
    maskdit.save(tiny_tokens(), str(path))
    how = {"num": 8, "seeds": (0, 1), "steps": 1, "guidance": 1.0, "temperature": 0.0}
    made = evaluate(str(path), metrics=("labels", "bits"), **how)
    kept = json.loads((tmp_path / "model.evaluation" / "metrics.json").read_text())
    assert kept == json.loads(json.dumps(made))
    assert (kept["sampler"], kept["steps"], kept["temperature"]) == ("Confidence", 1, 0.0)
    bits = kept["metrics"]["bits"]
    assert bits["mean"] == np.mean(bits["values"]) and bits["uniform"] == 10 and 9 < bits["mean"] < 11
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("bits "))
    assert f"{bits['mean']:.3f} bits" in row and f"{bits['standard error']:.3f} bits" in row and "%" not in row
    assert "8 held-out images, a bound from 8 draws each" in lines[-2] and lines[-3].startswith("classifier:")

"""The training step on a task of two numbers, where everything can be computed by hand."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Loss, Plan
from maskdit.training.optim import AdamW, Constant, Group
from maskdit.training.step import create, train_step

PLAIN = AdamW(Constant(0.1), b1=0.0, b2=0.0, eps=1.0)  # one update is g / (|g| + 1) * 0.1


@dataclasses.dataclass(frozen=True)
class Toy:
    """Fits `a` to x (weighted) and `b` to a's prediction; counts its calls in its state."""

    horizon: int = 10
    groups: Any = dataclasses.field(
        default_factory=lambda: {"first": Group(PLAIN, ("a",)), "second": Group(PLAIN, ("b",))}
    )

    def init(self, draw, batch):
        return {"net": {"a": jnp.zeros(2), "b": jnp.zeros(2), "c": jnp.ones(2)}}, {"calls": jnp.zeros(())}

    def loss(self, group, params, ctx):
        net, x, w = params["net"], ctx.batch["x"], ctx.batch["w"]
        noise = ctx.draw.normal(f"noise_{group}", x.shape)
        target = x if group == "first" else ctx.outputs["first"]
        value = jnp.square((net["a"] if group == "first" else net["b"]) - target - 0.1 * noise).sum(-1)
        loss = Loss(value=value, weight=w, batch={"size": 0.01 * jnp.square(net["a"]).sum()}, bins={"odd": x[:, 0] % 2})
        return loss.replace(prediction=jnp.broadcast_to(net["a"], x.shape) + x), {"calls": ctx.state["calls"] + 1}


@pytest.fixture(scope="module")
def batch():
    x = jnp.arange(16.0).reshape(8, 2)
    return {"x": x, "w": jnp.array([1, 0, 2, 1, 1, 3, 1, 1.0]), "row": jnp.arange(8)}


def run(batch, microbatches=1, groups=("first", "second"), task=None):
    task = task or Toy()
    seed = jax.random.key(0)
    state = create(task, (0.5, 0.9), batch, seed)
    step = functools.partial(train_step, task=task, plan=Plan(), groups=groups, microbatches=microbatches)
    return jax.jit(step)(state, {}, batch, seed)


def test_microbatches_give_the_same_step(batch):
    (one, first), (four, second) = run(batch), run(batch, microbatches=4)
    for a, b in zip(jax.tree.leaves((one.params, first)), jax.tree.leaves((four.params, second)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)
    assert float(four.task["calls"]) == 8 and float(one.task["calls"]) == 2


def test_gradient_is_that_of_the_weighted_mean(batch):
    from maskdit.draw import Draw

    noise = Draw(jax.random.key(0)).named("train").at(0).at(jnp.arange(8)).normal("noise_first", (8, 2))
    x, w = batch["x"], batch["w"][:, None]
    gradient = (w * 2 * (0 - x - 0.1 * noise)).sum(0) / w.sum()
    state, metrics = run(batch, groups=("first",))
    np.testing.assert_allclose(state.params["net"]["a"], -0.1 * gradient / (jnp.abs(gradient) + 1), rtol=1e-4)
    value, weight = metrics["first/loss/odd"]
    assert value == 0 and weight == 0  # no first entry is odd


def test_groups_leave_other_leaves_alone_and_averages_follow(batch):
    state, _ = run(batch, groups=("first",))
    assert np.all(state.params["net"]["b"] == 0) and np.all(state.params["net"]["c"] == 1)
    assert set(state.ema["0.5"]["net"]) == {"a", "b"}  # a leaf in no group has no average
    np.testing.assert_allclose(state.ema["0.9"]["net"]["a"], 0.1 * state.params["net"]["a"], rtol=1e-6)


def test_later_groups_see_the_outputs_of_earlier_ones(batch):
    together, _ = run(batch)
    assert not np.allclose(together.params["net"]["b"], 0)
    with pytest.raises(KeyError):
        run(batch, groups=("second", "first"))

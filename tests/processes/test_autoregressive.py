import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Cond, Layout, Plan, Predict, Prediction
from maskdit.draw import Draw
from maskdit.processes.autoregressive import Autoregressive

V, K = 5, 6
IDS = jnp.asarray(np.random.RandomState(0).randint(0, V, (64, K)))


def predictor(call):
    def wrapped(ids, t, cond, orders=None, draw=None):
        return Prediction(x=call(ids, jnp.tile(jnp.arange(K), (len(ids), 1)) if orders is None else orders))

    return Predict(call=wrapped, null=lambda cond: cond, layout=Layout(grid=(2, 3), vocabulary=V))


def loss(process, call, step=0):
    return process.loss(predictor(call), IDS, Cond(), Draw(0).at(jnp.arange(64)), step=jnp.asarray(step), plan=Plan())


def sure(ids):
    """Logits that tell these codes."""
    return 50.0 * (ids[..., None] == jnp.arange(V))


def test_share_of_random_orders_falls_linearly():
    process = Autoregressive(anneal_start=100, anneal_end=300)
    ratios = [float(process.random_ratio(jnp.asarray(step))) for step in (0, 100, 150, 250, 300, 1000)]
    np.testing.assert_allclose(ratios, [1, 1, 0.75, 0.25, 0, 0], atol=1e-6)
    for step, ratio in ((0, 1.0), (200, 0.5), (300, 0.0)):
        orders = np.asarray(process.orders((4000, K), Draw(0).at(jnp.arange(4000)), jnp.asarray(step)))
        np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(K), (4000, 1)))
        shuffled = (orders != np.arange(K)).any(1).mean()
        assert abs(shuffled - ratio) < 0.03


def test_random_orders_are_uniform():
    orders = np.asarray(Autoregressive().orders((6000, 3), Draw(1).at(jnp.arange(6000)), jnp.asarray(0)))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6 and np.abs(counts / 1000 - 1).max() < 0.15


def test_orders_never_shuffled_from_the_start():
    process = Autoregressive(anneal_start=0, anneal_end=0)
    np.testing.assert_array_equal(process.orders((2, K), Draw(0), jnp.asarray(0)), [np.arange(K)] * 2)


def test_network_is_held_to_the_codes_in_their_order():
    process = Autoregressive(anneal_start=10, anneal_end=10)
    right = lambda ids, orders: sure(jnp.take_along_axis(ids, orders, axis=1))  # noqa: E731
    for step in (0, 10):
        out = loss(process, right, step)
        np.testing.assert_allclose(out.value, 0, atol=1e-6)
        np.testing.assert_array_equal(out.metrics["accuracy"], 1)
    raster = lambda ids, orders: sure(ids)  # noqa: E731
    assert loss(process, raster).value.mean() > 10
    np.testing.assert_allclose(loss(process, raster, 10).value, 0, atol=1e-6)


def test_smoothed_target_is_spread_over_all_codes():
    logits = jnp.asarray(np.random.RandomState(1).standard_normal((1, K, V)), jnp.float32)
    log = np.asarray(logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True)))[0]
    call = lambda ids, orders: jnp.broadcast_to(logits, (len(ids), K, V))  # noqa: E731
    out = loss(Autoregressive(anneal_start=0, anneal_end=0, label_smoothing=0.2), call)
    target = 0.8 * np.eye(V)[np.asarray(IDS)] + 0.2 / V
    np.testing.assert_allclose(out.value, -(target * log).sum(-1).mean(-1), rtol=1e-5)


def test_bits_are_an_exact_likelihood():
    table = jnp.asarray(np.random.RandomState(2).standard_normal((V + 1, V)), jnp.float32)

    def chain(ids, orders):
        before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=V)
        return table[before]

    every = jnp.asarray(list(itertools.product(range(V), repeat=K)))
    bits = Autoregressive().bits(predictor(chain), every, Cond(), Draw(0))
    assert bits.shape == (V**K,)
    assert abs(float((2 ** (-K * np.asarray(bits, np.float64))).sum()) - 1) < 1e-4


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="anneal_start=5 to anneal_end=3"):
        Autoregressive(anneal_start=5, anneal_end=3)
    with pytest.raises(ValueError, match="label_smoothing"):
        Autoregressive(label_smoothing=1.0)

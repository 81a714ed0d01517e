"""The codebook of moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.draw import Draw
from maskdit.tokenizers.quantize.ema import EMAVQ


def features(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def state_of(codes, idle=None):
    count = len(codes)
    return {
        "state": {
            "codebook": jnp.asarray(codes),
            "sum": jnp.asarray(codes),
            "count": jnp.ones(count),
            "idle": jnp.zeros(count, jnp.int32) if idle is None else jnp.asarray(idle, jnp.int32),
        }
    }


def update(quantizer, variables, z, draw=None):
    out, state = quantizer.apply(variables, z, draw=draw, train=True, mutable=["state"])
    return out, state


def test_the_update_is_the_published_average():
    z, codes, decay, epsilon = features((3, 4, 2)), features((5, 2), 1), 0.9, 1e-2
    quantizer = EMAVQ(5, 2, decay=decay, epsilon=epsilon)
    out, new = update(quantizer, state_of(codes), z)
    chosen = np.eye(5)[np.asarray(out.ids).reshape(-1)]  # [N, V]
    count = decay + (1 - decay) * chosen.sum(0)
    total = decay * codes + (1 - decay) * chosen.T @ z.reshape(-1, 2)
    smooth = (count + epsilon) / (count.sum() + 5 * epsilon) * count.sum()
    np.testing.assert_allclose(new["state"]["count"], count, rtol=1e-5)
    np.testing.assert_allclose(new["state"]["sum"], total, atol=1e-5)
    np.testing.assert_allclose(new["state"]["codebook"], total / smooth[:, None], atol=1e-5)
    # what was quantized is of the codes before
    np.testing.assert_allclose(out.values, codes[np.asarray(out.ids)], atol=1e-6)


def test_repeated_updates_reach_the_mean_of_each_cluster():
    centres = np.asarray([[2, 0], [-2, 0], [0, 2]], np.float32)
    z = (centres[:, None] + 0.1 * features((3, 8, 2))).astype(np.float32)
    quantizer, variables = EMAVQ(3, 2, decay=0.5), state_of(0.5 * centres)
    for _ in range(40):
        _, variables = update(quantizer, variables, z)
    np.testing.assert_allclose(variables["state"]["codebook"], z.mean(1), atol=1e-4)


def test_there_are_no_parameters_and_evaluation_changes_nothing():
    z, quantizer = features((2, 3, 2)), EMAVQ(4, 2)
    variables = quantizer.init(jax.random.key(0), z, train=True)
    assert set(variables) == {"state"}
    np.testing.assert_array_equal(variables["state"]["count"], 1.0)  # to initialise is no update
    _, after = quantizer.apply(variables, z, mutable=["state"])
    jax.tree.map(np.testing.assert_array_equal, after, dict(variables))
    back = jax.grad(lambda z: quantizer.apply(variables, z).values.sum())(z)
    np.testing.assert_array_equal(back, np.ones_like(z))


def test_dead_codes_become_features_of_the_batch_all_different():
    z = features((2, 6, 2))
    codes = np.concatenate([np.zeros((1, 2)), 90 + features((5, 2))]).astype(np.float32)
    quantizer = EMAVQ(6, 2, revive=3)
    variables = state_of(codes, idle=[0, 2, 2, 0, 2, 2])  # the fourth code is idle for one update only
    draw = Draw(0).at(jnp.arange(2))
    _, new = update(quantizer, variables, z, draw)
    fresh = np.asarray(new["state"]["codebook"])[[1, 2, 4, 5]]
    among = (fresh[:, None] == z.reshape(1, -1, 2)).all(-1)  # [4, N]
    assert (among.sum(1) == 1).all() and among.sum(0).max() == 1
    np.testing.assert_array_equal(new["state"]["idle"], [0, 0, 0, 1, 0, 0])
    np.testing.assert_allclose(new["state"]["codebook"][3], codes[3], rtol=1e-3)
    _, without = update(quantizer, variables, z)
    np.testing.assert_array_equal(without["state"]["idle"], [0, 3, 3, 1, 3, 3])


def test_revival_raises_usage():
    z = features((8, 16, 2))
    codes = np.concatenate([features((2, 2)), 50 + features((14, 2))]).astype(np.float32)

    def used(quantizer):
        variables = state_of(codes)
        step = jax.jit(lambda v, draw: update(quantizer, v, z, draw)[1])
        for i in range(30):
            variables = step(variables, Draw(0).at(i).at(jnp.arange(8)))
        return len(np.unique(quantizer.apply(variables, z).ids))

    assert used(EMAVQ(16, 2, decay=0.9)) == 2
    assert used(EMAVQ(16, 2, decay=0.9, revive=4)) == 16


def test_clustering_moves_unused_codes_only_and_averages_go_on_from_there():
    z = features((2, 8, 2))
    codes = np.concatenate([z.reshape(-1, 2)[:3], 50 + features((2, 2))]).astype(np.float32)
    quantizer = EMAVQ(5, 2, decay=1.0, cluster=0.9)
    variables = quantizer.init(jax.random.key(0), z)
    start = {**variables["state"], **state_of(codes)["state"], "share": jnp.asarray([0.3, 0.3, 0.4, 0.0, 0.0])}
    _, new = update(quantizer, {"state": start}, z)
    np.testing.assert_allclose(new["state"]["codebook"][:3], codes[:3], atol=1e-5)
    nearest = np.square(z.reshape(-1, 1, 2) - codes[3:]).sum(-1).argmin(0)
    moved = np.exp(-1e-3) * z.reshape(-1, 2)[nearest] + (1 - np.exp(-1e-3)) * codes[3:]
    np.testing.assert_allclose(new["state"]["codebook"][3:], moved, rtol=1e-4)
    np.testing.assert_allclose(new["state"]["sum"], new["state"]["codebook"], rtol=1e-5)  # of counts of one


@pytest.mark.parametrize("l2", [False, True])
def test_rows_of_a_draw_not_their_order_decide(l2):
    """Rows that come in another order, with their places in the batch, make the same codes."""
    z, quantizer = features((4, 3, 2)), EMAVQ(8, 2, l2=l2, revive=1)
    order = np.asarray([2, 0, 3, 1])
    variables = state_of(features((8, 2), 3))
    _, one = update(quantizer, variables, z, Draw(5).at(jnp.arange(4)))
    _, other = update(quantizer, variables, z[order], Draw(5).at(order))
    np.testing.assert_allclose(one["state"]["codebook"], other["state"]["codebook"], atol=1e-6)


@pytest.mark.parametrize("fields", [{"decay": 1.5}, {"cluster": 1.0}, {"cluster": -0.5}])
def test_decays_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match="EMAVQ has decay"):
        EMAVQ(4, 2, **fields).init(jax.random.key(0), jnp.zeros((1, 1, 2)))

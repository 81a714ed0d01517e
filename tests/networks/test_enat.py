import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict, meta

from maskdit.contracts import Cond, bind
from maskdit.draw import Draw
from maskdit.networks.enat import ENAT
from maskdit.networks.maskgit import MaskGIT
from maskdit.processes.masked import BatchCounts, Masked
from maskdit.samplers.sampling import sample
from maskdit.samplers.tokens import Confidence

V = 7
NET = ENAT(V, (2, 3), width=16, depth=2, heads=2, decoder_depth=2, classes=FrozenDict(a=5, b=3))
COND = Cond(labels={"a": jnp.asarray([0, 4]), "b": jnp.asarray([2, 1])})
T = jnp.ones(2)
THEN = jnp.asarray([[V, 3, V, V, 0, V], [V, V, 5, V, V, 1]])  # 4 masks
NOW = jnp.asarray([[2, 3, V, V, 0, 6], [V, 4, 5, V, 3, 1]])  # 2 of them


def shaken(net, key=0):
    """Parameters without the zeros that they start from."""
    leaves, tree = jax.tree.flatten(meta.unbox(net.init(jax.random.key(key), THEN, T, COND))["params"])
    rng = np.random.RandomState(key)
    return tree.unflatten([leaf + 0.2 * jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves])


PARAMS = shaken(NET)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is most of it


@functools.partial(jit, static_argnames=("net", "masked", "fresh", "taps", "train"))
def call(params, ids, masked, cond=COND, net=NET, **kw):
    return net.apply({"params": params}, ids, T[: len(ids)], cond, masked=masked, **kw)


def close(a, b, tolerance=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def test_masks_never_change_visible_features():
    shown = np.asarray(NOW != V)
    before = call(PARAMS, NOW, 2)
    other = PARAMS | {"words": PARAMS["words"].at[V].multiply(-3.0)}
    after = call(other, NOW, 2)
    np.testing.assert_array_equal(before.cache["features"][shown], after.cache["features"][shown])
    np.testing.assert_array_equal(before.x[shown], after.x[shown])
    assert np.abs(before.x - after.x)[~shown].min() > 1e-4


def test_first_call_with_the_empty_cache_is_the_plain_one():
    plain = call(PARAMS, NOW, 2)
    close(call(PARAMS, NOW, 2, fresh=4, cache=NET.init_cache(2)), plain)
    ignored = call(PARAMS, NOW, 2, cache=call(PARAMS, THEN, 4).cache)
    close(ignored, plain, 0)


def test_taking_over_all_features_unchanged_gives_the_same_logits():
    identity = jax.tree.map(jnp.zeros_like, PARAMS["reuse"]["mlp"]["fc2"])
    params = PARAMS | {"reuse": PARAMS["reuse"] | {"mlp": PARAMS["reuse"]["mlp"] | {"fc2": identity}}}
    first = call(params, NOW, 2)
    again = call(params, NOW, 2, fresh=0, cache=first.cache)
    close(again, first)
    changed = call(PARAMS, NOW, 2, fresh=0, cache=first.cache)
    assert np.abs(changed.x - first.x).max() > 1e-2


def test_reuse_encodes_new_tokens_beside_old_features():
    cache = call(PARAMS, THEN, 4).cache
    out = call(PARAMS, NOW, 2, fresh=2, cache=cache)
    old, new = np.asarray(THEN != V), np.asarray((THEN == V) & (NOW != V))
    other_ids = jnp.where(new, (NOW + 1) % V, NOW)
    other = call(PARAMS, other_ids, 2, fresh=2, cache=cache)
    np.testing.assert_array_equal(out.cache["features"][old], other.cache["features"][old])
    assert np.abs(out.cache["features"] - other.cache["features"])[new].min() > 1e-4

    moved = cache | {"features": jnp.where(old[..., None], -cache["features"], 9.0)}  # 9: never read
    third = call(PARAMS, NOW, 2, fresh=2, cache=moved)
    assert np.abs(third.cache["features"] - out.cache["features"])[new].max() > 1e-3
    garbage = cache | {"features": jnp.where(old[..., None], cache["features"], 9.0)}
    close(call(PARAMS, NOW, 2, fresh=2, cache=garbage), out, 0)
    np.testing.assert_array_equal(out.cache["masked"], NOW == V)


def test_rows_do_not_meet():
    cache = call(PARAMS, THEN, 4).cache
    both = call(PARAMS, NOW, 2, fresh=2, cache=cache)
    row = slice(1, 2)
    alone = jax.tree.map(lambda x: x[row], (NOW, COND, cache))
    close(call(PARAMS, alone[0], 2, alone[1], fresh=2, cache=alone[2]).x, both.x[row])


def test_nothing_learns_through_the_head_table_and_the_cache():
    cache = call(PARAMS, THEN, 4).cache

    def loss(params, features):
        out = NET.apply({"params": params}, NOW, T, COND, masked=2, fresh=2, cache=cache | {"features": features})
        return jnp.sum(out.x**2)

    slope, inner = jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, cache["features"])
    np.testing.assert_array_equal(inner, 0)
    read = np.unique(NOW[(THEN == V)])  # what was visible then is not embedded again
    given = np.abs(slope["words"]).max(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(given), read)
    assert np.abs(slope["reuse"]["mlp"]["fc1"]["kernel"]).max() > 0


def test_scan_and_remat_change_nothing():
    other = dataclasses.replace(NET, scan=True, remat="dots", parent=None)
    cache = call(PARAMS, THEN, 4).cache

    def loss(net):
        def value(params):
            return jnp.sum(net.apply({"params": params}, NOW, T, COND, masked=2, fresh=2, cache=cache).x ** 2)

        return jit(jax.value_and_grad(value))(PARAMS)

    close(loss(other), loss(NET), 1e-4)


@pytest.mark.parametrize("masked", [0, 6])
def test_ends_of_a_run_need_no_masks_and_no_visible_tokens(masked):
    ids = jnp.full((2, 6), V) if masked else jnp.where(NOW == V, 1, NOW)
    out = call(PARAMS, ids, masked, taps=("tokens", "features"))
    assert out.x.shape == (2, 6, V)
    assert np.isfinite(out.x).all()
    assert out.taps["tokens"].shape == out.taps["features"].shape == (2, 6, 16)


def test_dropout_comes_from_the_rows_own_draws():
    draw = Draw(0).at(jnp.arange(2))
    out = call(PARAMS, NOW, 2, draw=draw, train=True)
    close(call(PARAMS, NOW, 2, draw=draw, train=True), out, 0)
    row = jax.tree.map(lambda x: x[1:], (NOW, COND))
    close(call(PARAMS, row[0], 2, row[1], draw=Draw(0).at(jnp.arange(1, 2)), train=True).x, out.x[1:])
    plain = call(PARAMS, NOW, 2)
    close(call(PARAMS, NOW, 2, draw=draw), plain, 0)
    assert np.abs(out.x - plain.x).max() > 1e-2


def test_cache_keeps_its_kind_in_half_precision():
    net = dataclasses.replace(NET, dtype="bfloat16", parent=None)
    out = call.eval_shape(PARAMS, NOW, 2, net=net)
    first = jax.eval_shape(lambda: net.init_cache(2))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), out.cache) == jax.tree.map(lambda x: (x.shape, x.dtype), first)
    assert out.x.dtype == jnp.float32


@pytest.mark.parametrize(("masked", "fresh"), [(64, None), (40, None), (10, 30), (10, 0), (0, 5)])
def test_macs_are_what_xla_counts(masked, fresh):
    net = ENAT(256, (8, 8), width=128, depth=3, heads=2, decoder_depth=2, classes={"a": 5})
    cond, cache = Cond(labels={"a": jnp.zeros(1, jnp.int32)}), net.init_cache(1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 64), jnp.int32), T[:1], cond)["params"]

    def forward(params, ids):
        return net.apply({"params": params}, ids, T[:1], cond, masked=masked, fresh=fresh, cache=cache).x

    counted = jax.jit(forward).lower(meta.unbox(shapes), jnp.zeros((1, 64), jnp.int32)).cost_analysis()
    assert counted["flops"] == pytest.approx(2 * net.macs(masked=masked, fresh=fresh), rel=0.04)


def sampling_flops(net, counted, reuse):
    """What XLA counts for a run of 4 steps; it counts the body of a loop once, and counted steps are loops of one."""
    sampler = Confidence(steps=4, schedule="cosine", least=0, counted=counted, reuse=reuse)
    cond = Cond(labels={"a": jnp.zeros(1, jnp.int32)})
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 64), jnp.int32), T[:1], cond)["params"]

    def run(params):
        process = Masked(counts=BatchCounts() if counted else None)
        return sample(process, sampler, bind(net, params), Draw(0).at(jnp.arange(1)), (1, 64), cond)

    flops = jax.jit(run).lower(meta.unbox(shapes)).cost_analysis()["flops"]
    return flops if counted else 4 * flops


def test_a_sampling_run_costs_less_with_reuse_and_less_than_a_plain_masked_generators():
    size = {"vocabulary": 32, "grid": (8, 8), "width": 64, "heads": 2, "classes": FrozenDict(a=5)}
    enat, plain = ENAT(**size, depth=5, decoder_depth=1), MaskGIT(**size, depth=6, hidden=256)
    with_reuse, without = sampling_flops(enat, True, True), sampling_flops(enat, True, False)
    assert with_reuse < 0.9 * without
    assert without < 0.8 * sampling_flops(plain, False, False)


def test_what_does_not_fit_is_refused():
    def shaped(net=NET, ids=NOW, **kw):
        jax.eval_shape(lambda: net.apply({"params": PARAMS}, ids, T, COND, **kw))

    cases = {
        "needs `masked`": {},
        "masked=7 tokens of 6": {"masked": 7},
        "fresh=5 of 4 visible": {"masked": 2, "fresh": 5, "cache": NET.init_cache(2)},
        "without the cache": {"masked": 2, "fresh": 1},
        "no `keep`": {"masked": 2, "keep": jnp.zeros((2, 1), jnp.int32)},
        "no taps": {"masked": 2, "taps": ("blocks_0",)},
        r"shape \[B, 6\]": {"masked": 2, "ids": NOW[:, :4]},
    }
    for message, given in cases.items():
        with pytest.raises(ValueError, match=message):
            shaped(**given)
    with pytest.raises(ValueError, match="label_null=True"):
        dataclasses.replace(NET, label_null=False, parent=None).null(COND)
    with pytest.raises(ValueError, match="does not divide into 3 heads"):
        dataclasses.replace(NET, heads=3, parent=None).init(jax.random.key(0), NOW, T, COND)

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskdit.training.checkpoint import Checkpoints, Store
from maskdit.training.optim import AdamW, Constant, Cosine, Group, InverseSqrt, merge, select
from maskdit.training.step import TrainState


def test_schedules_at_their_ends():
    assert float(Constant(lr=2.0, warmup=10).rate(5, 100)) == pytest.approx(1.0)
    cosine = Cosine(lr=2.0, warmup=10, final=0.1)
    np.testing.assert_allclose(
        [cosine.rate(n, 110) for n in (5, 10, 60, 110, 500)], [1.0, 2.0, 1.1, 0.2, 0.2], rtol=1e-5
    )
    falling = InverseSqrt(lr=1.0, warmup=10, decay_from=100)
    np.testing.assert_allclose([falling.rate(n, 0) for n in (1, 10, 100, 400)], [0.1, 1, 1, 0.5], rtol=1e-6)


def test_decay_spares_vectors_and_clip_bounds_the_gradient():
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    optimizer = AdamW(schedule=Constant(lr=0.1), weight_decay=0.5)
    transform = optimizer.transform(10)
    zeros = {"a": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    updates, _ = transform.update(zeros, transform.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.05)
    np.testing.assert_array_equal(updates["a"]["bias"], 0)
    clipped = AdamW(schedule=Constant(lr=1.0), clip=1.0, b1=0.0, b2=0.0, eps=1.0).transform(10)
    updates, _ = clipped.update({"w": jnp.full(4, 50.0)}, clipped.init({"w": jnp.zeros(4)}), {"w": jnp.zeros(4)})
    np.testing.assert_allclose(updates["w"], -0.5 / 1.5, rtol=1e-5)


def test_decay_spares_what_is_named():
    params = {"net": {"embed": {"tokens": jnp.ones((2, 2))}, "out": {"kernel": jnp.ones((2, 2))}}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    transform = AdamW(Constant(lr=0.1), weight_decay=0.5, undecayed=("/embed/",)).transform(10)
    updates, _ = transform.update(zeros, transform.init(params), params)
    np.testing.assert_array_equal(updates["net"]["embed"]["tokens"], 0)
    np.testing.assert_allclose(updates["net"]["out"]["kernel"], -0.05)


def test_select_and_merge_by_path():
    params = {"net": {"in": {"w": 1}, "out": {"w": 2, "b": 3}}}
    part = select(params, (r"out/",))
    assert part == {"net": {"out": {"w": 2, "b": 3}}}
    assert merge(params, {"net": {"out": {"b": 9}}}) == {"net": {"in": {"w": 1}, "out": {"w": 2, "b": 9}}}
    with pytest.raises(ValueError, match="no parameter matches"):
        select(params, ("decoder",))


def test_groups_take_turns():
    group = Group(every=3, start=2)
    assert [step for step in range(10) if group.active(step)] == [2, 5, 8]


def test_frozen_leaves_and_rates_of_a_group():
    params = {"net": {"in": {"w": jnp.ones((2, 2))}, "out": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}}
    group = Group(AdamW(Constant(lr=0.1), weight_decay=0.5), frozen=("in/",), rates=(("out/b", 10.0), ("out", 0.5)))
    selected = group.select(params)
    assert selected == {"net": {"out": params["net"]["out"]}}
    transform, grads = group.transform(1), jax.tree.map(jnp.ones_like, selected)
    updates, state = transform.update(grads, transform.init(selected), selected)
    plain, _ = (
        AdamW(Constant(lr=0.1), weight_decay=0.5)
        .transform(1)
        .update(grads, AdamW().transform(1).init(selected), selected)
    )
    np.testing.assert_allclose(updates["net"]["out"]["w"], 0.5 * plain["net"]["out"]["w"])  # its decay too
    np.testing.assert_allclose(updates["net"]["out"]["b"], 10 * plain["net"]["out"]["b"])
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 6 + 2  # moments of what is trained, two counters
    for fault in ({"frozen": ("inn/",)}, {"rates": (("inn/", 2.0),)}, {"frozen": ("",)}):
        with pytest.raises(ValueError, match=r"no parameter of the group matches 'inn/'|nothing to train"):
            Group(**fault).select(params)
    for rates in (("out", 2.0), (("out", -1.0),), (("out", "x"),)):
        with pytest.raises(ValueError, match="pairs"):
            Group(rates=rates)
    with pytest.raises(ValueError, match="no regular expression"):
        Group(frozen=("[",))


def test_adamw_is_optax_adamw():
    params, grads = {"w": jnp.array([[1.0, 2.0]])}, {"w": jnp.array([[0.3, -0.2]])}
    ours, theirs = AdamW(Constant(0.01), weight_decay=0.1).transform(1), optax.adamw(0.01, weight_decay=0.1)
    a, _ = ours.update(grads, ours.init(params), params)
    b, _ = theirs.update(grads, theirs.init(params), params)
    np.testing.assert_allclose(a["w"], b["w"], rtol=1e-6)


def updated(optimizer: AdamW, updates: int = 30):
    """Parameters and optimizer state after updates with noisy gradients around a mean of 1."""
    transform, params = optimizer.transform(updates), {"w": jnp.zeros((4, 4))}
    opt = transform.init(params)
    for noise in np.random.RandomState(0).standard_normal((updates, 4, 4)):
        change, opt = transform.update({"w": jnp.asarray(1 + noise, jnp.float32)}, opt, params)
        params = optax.apply_updates(params, change)
    return params, opt


def test_first_moment_in_bfloat16_trains_alike_and_the_second_stays():
    whole, _ = updated(AdamW(Constant(0.01)))
    half, opt = updated(AdamW(Constant(0.01), moment_dtype="bfloat16"))
    adam = opt[0]
    assert (adam.mu["w"].dtype, adam.nu["w"].dtype, half["w"].dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    assert not np.array_equal(half["w"], whole["w"])
    np.testing.assert_allclose(half["w"], whole["w"], rtol=5e-3)
    with pytest.raises(ValueError, match=r"'bfloat16'.*got 'float16'"):
        AdamW(moment_dtype="float16")


def test_first_moment_in_bfloat16_is_saved_as_it_is(tmp_path):
    params, opt = updated(AdamW(Constant(0.01), moment_dtype="bfloat16"), updates=2)
    state = TrainState(step=jnp.int32(2), params=params, ema={}, opt={"all": opt}, task={})
    store = Store(str(tmp_path), Checkpoints())
    store.save(state, {})
    store.wait()
    restored = store.restore(2, like=jax.tree.map(jnp.zeros_like, state))
    store.close()
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)

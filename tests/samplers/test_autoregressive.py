import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.contracts import Cond, Layout, bind
from maskdit.draw import Draw
from maskdit.networks.rar import RAR, SIZES
from maskdit.processes.autoregressive import Autoregressive
from maskdit.processes.edm import EDM
from maskdit.processes.masked import Masked
from maskdit.samplers.autoregressive import TokenByToken
from maskdit.samplers.cost import sampling_macs
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import Known, guided_runs, network_calls, walk

V, K = 3, 4
PROCESS = Autoregressive()
NET = RAR(V, (2, 2), width=8, depth=1, heads=2, hidden=16, classes={"a": 2}, spare_positions=2, spare_steps=2)
LAYOUT = NET.layout
GUIDANCE = ClassifierFree(weight=5.0, schedule="cosine", power=1.5)


def parameters():
    """Without the zeros that they start from."""
    cond = Cond(labels={"a": jnp.zeros((1,), int)})
    shapes = meta.unbox(NET.init(jax.random.key(0), jnp.zeros((1, K), int), jnp.zeros(1), cond))["params"]
    rng = np.random.RandomState(0)
    return jax.tree.map(lambda leaf: leaf + 0.35 * jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)


PARAMS = parameters()


CACHED = TokenByToken()
PLAIN = {"xla_backend_optimization_level": 0}  # compiling is most of the time of these tests


@functools.partial(jax.jit, static_argnames=("sampler", "guidance"), compiler_options=PLAIN)
def run(rows, label, sampler=CACHED, guidance=None, known=None):
    cond = Cond(labels={"a": jnp.full(rows.shape, label)})
    draw = Draw(0).named("sample").at(rows)
    shape = (len(rows), K)
    return walk(PROCESS, sampler, bind(NET, PARAMS), draw, shape, cond, guidance=guidance, known=known, watch=True)


def ids(*args, **kw):
    return np.asarray(run(*args, **kw)[0].x)


@pytest.mark.parametrize("guidance", [None, GUIDANCE])
def test_memory_changes_no_code(guidance):
    rows = jnp.arange(32)
    cached = ids(rows, 1, guidance=guidance)
    assert len(np.unique(cached, axis=0)) > 4 and cached.min() >= 0 and cached.max() < V
    np.testing.assert_array_equal(cached, ids(rows, 1, TokenByToken(cache=False), guidance=guidance))


def test_samples_do_not_depend_on_the_batch():
    np.testing.assert_array_equal(ids(jnp.arange(32), 0)[4:6], ids(jnp.asarray([4, 5]), 0))


def test_samples_follow_the_likelihood_of_the_model():
    every = jnp.asarray(list(itertools.product(range(V), repeat=K)))
    cond = Cond(labels={"a": jnp.ones(len(every), int)})
    bits = jax.jit(lambda p: PROCESS.bits(bind(NET, p), every, cond, Draw(0)), compiler_options=PLAIN)(PARAMS)
    wanted = 2 ** (-K * np.asarray(bits, np.float64))
    drawn = ids(jnp.arange(20_000), 1)
    found = np.bincount(drawn @ V ** np.arange(K)[::-1], minlength=V**K) / len(drawn)
    assert np.abs(found - wanted).sum() / 2 < 0.03  # in total variation; chance gives about 0.02


def test_low_temperature_takes_the_likeliest_code_each_time():
    drawn = ids(jnp.arange(32), 0, TokenByToken(temperature=1e-4))
    cond = Cond(labels={"a": jnp.zeros(32, int)})
    whole = jax.jit(lambda p: bind(NET, p)(jnp.asarray(drawn), jnp.zeros(32), cond).x, compiler_options=PLAIN)
    logits = whole(PARAMS)
    np.testing.assert_array_equal(logits.argmax(-1), drawn)


def test_known_codes_stay_and_later_ones_are_told_from_them():
    rows = jnp.arange(32)
    mask = jnp.asarray([False, True, False, False])
    found = []
    for code in range(V):
        drawn = ids(rows, 1, known=Known(x=jnp.full((32, K), code), mask=mask))
        np.testing.assert_array_equal(drawn[:, 1], code)
        found.append(drawn)
    np.testing.assert_array_equal(found[0][:, 0], found[1][:, 0])
    assert (found[0][:, 2:] != found[1][:, 2:]).any()
    # where a run draws the known code by itself, nothing changes
    free = ids(rows, 1)
    same = free[:, 1] == 2
    assert same.any()
    np.testing.assert_array_equal(found[2][same], free[same])


def test_estimates_hold_the_codes_so_far():
    state, seen = run(jnp.arange(32), 0)
    for i in range(K):
        np.testing.assert_array_equal(seen[i][:, : i + 1], state.x[:, : i + 1])
    assert seen.min() >= 0 and seen.max() < V


def test_guidance_that_is_on_anywhere_fills_the_memory_of_both_passes():
    for cache, guided, calls in ((True, [True, True], 2 * K), (False, [False, True], 2 * K - 1)):
        sampler = TokenByToken(cache=cache)
        spaced = PROCESS.respace(sampler.grid(PROCESS, LAYOUT))
        runs = guided_runs(sampler, spaced, LAYOUT, GUIDANCE)  # its weight is 1 at the first step
        assert [part.guided for part in runs] == guided
        assert [(part.start, part.stop) for part in runs] == [(0, 1), (1, K)]
        assert network_calls(sampler, PROCESS, LAYOUT, GUIDANCE) == calls
        assert network_calls(sampler, PROCESS, LAYOUT) == K


def test_one_token_is_one_step():
    layout = Layout(grid=(1,), vocabulary=V)
    sampler = TokenByToken()
    runs = sampler.runs(PROCESS.respace(sampler.grid(PROCESS, layout)), layout)
    assert [(part.start, part.stop) for part in runs] == [(0, 1)]


@pytest.mark.parametrize("name", SIZES)
def test_memory_saves_eighty_times_the_work(name):
    net = RAR(1024, (16, 16), classes={"label": 1000}, **SIZES[name])
    cached, padded = (sampling_macs(TokenByToken(cache=cache), PROCESS, net) for cache in (True, False))
    assert padded == 256 * net.macs()
    assert padded > 80 * cached
    assert sampling_macs(TokenByToken(), PROCESS, net, GUIDANCE) == 2 * cached
    assert cached < 1.01 * net.macs()  # telling all codes costs one pass over them


def test_work_counted_by_the_compiler_falls_as_far():
    """At 256 tokens: the program of one step of each run, times its steps."""
    net = dataclasses.replace(NET, grid=(16, 16), width=64, hidden=256, parent=None)
    cond = Cond(labels={"a": jnp.zeros((1,), int)})
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 256), int), jnp.zeros(1), cond)["params"]

    def flops(sampler):
        process = PROCESS.respace(sampler.grid(PROCESS, net.layout))

        def step(params, i, part):
            predict = bind(net, params)
            state = sampler.init(process, predict, Draw(0).at(jnp.arange(1)), (1, 256), cond)
            return sampler.step(process, predict, state, i, part).x

        return sum(
            (part.stop - part.start)
            * jax.jit(functools.partial(step, part=part))
            .lower(meta.unbox(shapes), 1)
            .compile()
            .cost_analysis()["flops"]
            for part in sampler.runs(process, net.layout)
        )

    assert flops(TokenByToken(cache=False)) > 80 * flops(TokenByToken())


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="one step for each token, got steps=8"):
        dataclasses.replace(TokenByToken(), steps=8)
    with pytest.raises(ValueError, match="more than 0, got 0"):
        TokenByToken(temperature=0.0)
    for process in (Masked(), EDM()):
        with pytest.raises(ValueError, match=type(process).__name__):
            TokenByToken().grid(process, LAYOUT)
    with pytest.raises(ValueError, match="Heun"):
        TokenByToken().grid(PROCESS, Layout(grid=(2, 2), channels=3))

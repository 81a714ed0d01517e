import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Cond, Layout, Predict, Prediction, null_condition
from maskdit.draw import Draw
from maskdit.processes.edm import EDM
from maskdit.processes.masked import BatchCounts, Masked, MaskedDiffusion
from maskdit.samplers.guidance import ClassifierFree, WeakNetwork
from maskdit.samplers.heun import Heun
from maskdit.samplers.sampling import Known, guided_runs, network_calls, sample, walk
from maskdit.samplers.temperature import Between, Constant, Falling, started, temperatures
from maskdit.samplers.tokens import AncestralUnmasking, Confidence
from maskdit.samplers.unmask import halton, halton_order

CODES, ROWS = 6, 3
LAYOUT = Layout(grid=(4, 4), vocabulary=CODES)
TRUTH = jnp.arange(16) % CODES
COUNTED = Masked(counts=BatchCounts())
COND = Cond(labels={"label": jnp.zeros(ROWS, jnp.int32)})


def network(x, t, cond, **kw):
    """Sure of one code at each place, a little less so from row to row of the grid."""
    sure = 12.0 - 0.1 * jnp.arange(16)
    return Prediction(x=jnp.broadcast_to(sure[:, None] * jax.nn.one_hot(TRUTH, CODES), (*x.shape, CODES)))


PREDICT = Predict(call=network, null=lambda cond: null_condition(cond, {"label": 1}), layout=LAYOUT)


def draw(seed=0):
    return Draw(seed).at(jnp.arange(ROWS))


def run(sampler, predict=PREDICT, process=Masked(), **settings):  # noqa: B008
    state, seen = walk(process, sampler, predict, draw(), (ROWS, 16), COND, watch=True, **settings)
    return np.asarray(state.x), np.asarray(seen)


def masks_seen(sampler, **settings):
    """How many masks the network sees in each call."""
    seen = []
    predict = dataclasses.replace(PREDICT, call=lambda x, *a, **k: seen.append(x) or network(x, *a, **k))
    process = Masked()
    process = process.respace(sampler.grid(process, LAYOUT))
    state = sampler.init(process, predict, draw(), (ROWS, 16), COND)
    for part in guided_runs(sampler, process, LAYOUT, **settings):
        for i in range(part.start, part.stop):
            state = sampler.step(process, predict, state, i, part)
    return [np.asarray((x == CODES).sum(1)).tolist() for x in seen]


@pytest.mark.parametrize("policy", [None, halton])
def test_cold_decoding_gives_the_likeliest_tokens(policy):
    sampler = Confidence(steps=4, temperature=0.0, **({} if policy is None else {"policy": policy}))
    ids, _ = run(sampler)
    np.testing.assert_array_equal(ids, np.broadcast_to(TRUTH, ids.shape))


def test_cold_confidence_fixes_the_surest_first():
    process = Masked()
    sampler = Confidence(steps=2, schedule="linear", temperature=0.0)
    process = process.respace(sampler.grid(process, LAYOUT))
    state = sampler.init(process, PREDICT, draw(), (ROWS, 16), COND)
    state = sampler.step(process, PREDICT, state, 0, sampler.runs(process, LAYOUT)[0])
    np.testing.assert_array_equal(np.asarray(state.x[0] != CODES), np.arange(16) < 8)


def test_the_schedule_is_exact_where_float32_is_one_below():
    """arccos(1/2) / (pi/2) is 2/3, and 2/3 of 12 is 8; single precision makes it 7."""
    layout = Layout(grid=(12,), vocabulary=CODES)
    assert Confidence(steps=4)._left(4, 12)[1, 12] == 8
    third = Confidence(steps=3, schedule="linear")
    assert third._left(3, 12)[0, 12] == 8 and third._left(3, 12)[:, 0].tolist() == [0, 0, 0]
    assert dataclasses.replace(third, count_dtype="float32")._left(3, 12)[0, 12] == 7
    assert network_calls(Confidence(steps=4), Masked(), layout) == 4


def test_masks_fall_as_the_schedule_says_and_one_at_least_is_fixed_in_each_step():
    assert [m[0] for m in masks_seen(Confidence(steps=4, schedule="linear"))] == [16, 12, 8, 4]
    assert [m[0] for m in masks_seen(Confidence(steps=16, schedule="square"))] == list(range(16, 0, -1))


def test_known_tokens_stay_and_only_the_others_are_scheduled():
    mask = jnp.zeros((ROWS, 16), bool).at[0, :8].set(True).at[1, :15].set(True)
    known = Known(x=jnp.full((ROWS, 16), 5, jnp.int32), mask=mask)
    ids, seen = run(Confidence(steps=4, schedule="linear", temperature=0.0), known=known)
    kept = np.asarray(mask)
    assert (ids[kept] == 5).all() and (seen[:, kept] == 5).all()
    np.testing.assert_array_equal(ids[~kept], np.broadcast_to(TRUTH, ids.shape)[~kept])


def test_rows_draw_alike_in_any_batch():
    ids, _ = run(Confidence(steps=4, temperature=20.0))
    alone = sample(
        Masked(), Confidence(steps=4, temperature=20.0), PREDICT, Draw(0).at(jnp.arange(2, 3)), (1, 16), COND
    )
    np.testing.assert_array_equal(ids[2:], alone)
    assert (ids != np.asarray(TRUTH)).any()  # it is hot enough to err


def test_a_trajectory_ends_in_the_sample():
    ids, seen = run(Confidence(steps=5, temperature=9.0))
    assert seen.shape == (5, ROWS, 16) and (seen[-1] == ids).all() and (seen < CODES).all()


def test_an_unguided_first_step_makes_one_pass():
    guide = ClassifierFree(weight=5.5, schedule="linear")
    assert network_calls(Confidence(steps=8), Masked(), LAYOUT, guide) == 15
    process = Masked().respace(Masked().times(8))
    runs = guided_runs(Confidence(steps=8), process, LAYOUT, guide)
    assert [(part.start, part.stop, part.guided) for part in runs] == [(0, 1, False), (1, 8, True)]


def test_a_memory_is_filled_by_both_passes_in_each_step():
    sampler = Confidence(steps=8, least=0, counted=True, reuse=True)
    guide = ClassifierFree(weight=5.5, schedule="linear")
    assert network_calls(sampler, COUNTED, LAYOUT, guide) == 16


def test_counted_runs_tell_the_network_how_many_masks_and_how_many_are_fresh():
    sampler = Confidence(steps=4, schedule="linear", least=0, counted=True, reuse=True)
    process = Masked().respace(Masked().times(4))
    runs = sampler.runs(process, LAYOUT, known=8)
    assert [(part.masked, part.fresh) for part in runs] == [(8, None), (6, 2), (4, 2), (2, 2)]
    few = Confidence(steps=8, least=0, counted=True)
    process = process.respace(process.times(8))
    masked = [part.masked for part in few.runs(process, LAYOUT, known=14)]
    assert masked == [2, 1, 1, 1, 1, 1]  # steps without masks are left out


def test_guidance_grows_as_its_schedule_says():
    def weights(steps=4, **fields):
        return ClassifierFree(**fields).weights(steps)

    np.testing.assert_allclose(weights(weight=5.0), [5, 5, 5, 5])
    np.testing.assert_allclose(weights(weight=5.0, schedule="linear"), [1, 2, 3, 4])
    np.testing.assert_allclose(weights(weight=5.0, schedule="linear", ahead=True), [2, 3, 4, 5])
    np.testing.assert_allclose(weights(weight=3.0, schedule="cosine"), 1 + (1 - np.cos(np.pi * np.arange(4) / 4)))
    power = weights(weight=16.0, schedule="cosine", power=2.75)
    np.testing.assert_allclose(power, 1 + 15 * (1 - np.cos(np.pi * (np.arange(4) / 4) ** 2.75)) / 2)
    np.testing.assert_allclose(weights(weight=4.0, schedule="cosine", power=0.0), [4, 4, 4, 4])
    np.testing.assert_allclose(weights(weight=7.0, start=2.0, schedule="flipped-cosine")[0], 2 + 5 / 2)


def test_guidance_moves_logits_by_its_weight_at_the_step():
    def call(x, t, cond, **kw):
        return Prediction(x=jnp.broadcast_to(cond.labels["label"][:, None, None] * 1.0, (*x.shape, CODES)))

    predict = dataclasses.replace(PREDICT, call=call)  # conditional 0, null 1
    seen = {}
    guide = ClassifierFree(weight=5.0, schedule="linear")

    class Watched(Masked):
        def logits(self, predict, xt, t, cond, *, at, **kw):
            made = super().logits(predict, xt, t, cond, at=at, **kw)
            seen[at.step] = float(made[0][0, 0, 0])
            return made

    process = Watched().respace(Masked().times(4))
    state = Confidence(steps=4).init(process, predict, draw(), (ROWS, 16), COND)
    part = Confidence(steps=4).runs(process, LAYOUT)[0]
    for i in range(4):
        state = Confidence(steps=4).step(process, guide.wrap(predict), state, i, part)
    assert seen == pytest.approx({0: 0.0, 1: -1.0, 2: -2.0, 3: -3.0})


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ancestral_unmasking_never_changes_a_token_and_ends_without_masks(schedule):
    sampler = AncestralUnmasking(steps=6, schedule=schedule)
    process = MaskedDiffusion().respace(sampler.grid(MaskedDiffusion(), LAYOUT))
    state = sampler.init(process, PREDICT, draw(), (ROWS, 16), COND)
    for i in range(6):
        before, state = state, sampler.step(process, PREDICT, state, i, sampler.runs(process, LAYOUT)[0])
        known = np.asarray(before.x != CODES)
        np.testing.assert_array_equal(np.asarray(state.x)[known], np.asarray(before.x)[known])
    assert not (np.asarray(state.x) == CODES).any()


def test_the_last_step_unmasks_even_where_zero_is_drawn():
    class Zero(Draw):
        def at(self, index):
            return self

        def uniform(self, name, shape):
            return jnp.zeros(shape)

    sampler = AncestralUnmasking(steps=4, schedule="cosine")
    process = Masked().respace(sampler.grid(Masked(), LAYOUT))
    state = dataclasses.replace(sampler.init(process, PREDICT, draw(), (ROWS, 16), COND), draw=Zero(0))
    state = sampler.step(process, PREDICT, state, 3, sampler.runs(process, LAYOUT)[0])
    assert not (np.asarray(state.x) == CODES).any()


def test_halton_order_visits_every_quarter_before_any_twice():
    order = halton_order((8, 8)).reshape(8, 8)
    assert sorted(order.ravel()) == list(range(64))
    first = np.argwhere(order < 12)
    quarters = {(row // 4, column // 4) for row, column in first}
    assert len(quarters) == 4
    nearest = min(np.abs(a - b).max() for i, a in enumerate(first) for b in first[:i])
    rng = np.random.default_rng(0)
    chance = [rng.choice(64, 12, replace=False) for _ in range(200)]
    spread = [
        min(max(abs(a // 8 - b // 8), abs(a % 8 - b % 8)) for i, a in enumerate(c) for b in c[:i]) for c in chance
    ]
    assert nearest >= np.mean(spread)


def test_temperatures():
    np.testing.assert_allclose(temperatures(8.0, 4), [6, 4, 2, 0])
    np.testing.assert_allclose(temperatures(Falling(6.0, least=1.0), 4), [4.5, 3, 1.5, 1])
    np.testing.assert_allclose(temperatures(Between(2.0, 0.0), 3), [2, 1, 0])
    np.testing.assert_allclose(temperatures((3.0, 1.0), 2), [3, 1])
    assert started(Between(2.0, 0.5), 4.0) == Between(4.0, 0.5) and started(3.0, 4.0) == 4.0
    np.testing.assert_allclose(temperatures(started(Constant(1.0), 2.0), 2), [2, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network_calls(Confidence(steps=17), Masked(), LAYOUT), "steps are 1 to 16, got 17"),
        (lambda: network_calls(Confidence(steps=0), Masked(), LAYOUT), "steps are 1 to 16, got 0"),
        (lambda: network_calls(Confidence(), EDM(), Layout((2, 2), 1, 3)), "use a sampler of its process"),
        (lambda: network_calls(Heun(), Masked(), LAYOUT), "use a sampler of them"),
        (lambda: Confidence(confidence="entropy"), "none of logit, log_probability"),
        (lambda: Confidence(reuse=True), "set counted=True"),
        (lambda: Confidence(count_dtype="float16"), "none of float32, float64"),
        (lambda: run(Confidence(steps=4, least=0, counted=True, reuse=True), process=COUNTED), "does not take"),
        (lambda: run(Confidence(counted=True)), "set least=0"),
        (lambda: run(Confidence(counted=True, least=0)), "this model was trained without: set counted=False"),
        (lambda: network_calls(Confidence(), COUNTED, LAYOUT), "use Confidence with counted=True, least=0"),
        (lambda: ClassifierFree(weight=float("nan")), "a finite number, got nan"),
        (lambda: WeakNetwork(weight=float("inf")), "a finite number, got inf"),
        (lambda: temperatures(float("inf"), 2), "0 or more and finite, got inf"),
        (lambda: run(Confidence(steps=4, temperature=(1.0, 2.0))), "2 temperatures were given for 4 steps"),
        (lambda: temperatures(-1.0, 2), "temperatures are 0 or more"),
        (lambda: AncestralUnmasking(temperature=0.0), "give a positive number"),
        (lambda: ClassifierFree(schedule="step"), "guidance schedule 'step' is none of"),
        (lambda: ClassifierFree(power=-1.0), "0 or more"),
        (lambda: halton_order((2, 2, 2, 2)), "1 to 3 axes"),
    ],
)
def test_what_does_not_go_together_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()

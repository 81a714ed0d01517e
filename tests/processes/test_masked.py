import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Cond, Layout, Plan, Predict, Prediction
from maskdit.draw import Draw
from maskdit.processes.masked import (
    MASKS,
    BatchCounts,
    Masked,
    MaskedDiffusion,
    cross_entropy,
    likelihood_bound,
    lowest,
)

CODES, TOKENS, ROWS = 5, 8, 4000
STEP = jnp.zeros((), int)
SHARES = jnp.asarray([0.5, 0.2, 0.15, 0.1, 0.05])  # of the codes in the data, each token by itself
LAYOUT = Layout(grid=(TOKENS,), vocabulary=CODES)


@pytest.fixture(scope="module")
def ids():
    return jax.random.categorical(jax.random.key(0), jnp.log(SHARES), shape=(ROWS, TOKENS)).astype(jnp.int32)


def perfect(seen=None):
    """A network that knows the distribution of the data."""

    def call(x, t, cond, **kw):
        if seen is not None:
            seen.append((x, t, kw))
        return Prediction(x=jnp.broadcast_to(jnp.log(SHARES), (*x.shape, CODES)), cache=jnp.zeros(()))

    return Predict(call=call, null=lambda cond: cond, layout=LAYOUT)


def loss(process, predict, ids, plan=None, key=1):
    draw = Draw(key).at(jnp.arange(len(ids)))
    return process.loss(predict, ids, Cond(), draw, step=STEP, plan=plan or Plan())


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_schedule_falls_from_all_to_none(name):
    shares = MASKS[name](np.linspace(0, 1, 9), np)
    assert shares[0] == pytest.approx(1) and abs(shares[-1]) < 1e-7 and (np.diff(shares) < 0).all()


@pytest.mark.parametrize("name", MASKS)
def test_as_many_tokens_are_masked_as_the_schedule_says(name, ids):
    seen = []
    out = loss(Masked(schedule=name), perfect(seen), ids)
    x, t, _ = seen[0]
    masked = x == CODES
    assert bool((masked.sum(1) >= 1).all()) and bool((x == ids)[~masked].all())
    np.testing.assert_allclose(t, masked.mean(1))
    u = (np.arange(1000) + 0.5) / 1000
    assert float(masked.mean()) == pytest.approx(MASKS[name](u, np).mean(), abs=0.02)
    assert out.metrics["accuracy"].shape == (ROWS,)


def test_the_step_minimises_the_mean_over_weighted_tokens_of_the_batch(ids):
    """sum(weight * value) / sum(weight) is one average over tokens, not over examples."""
    seen = []
    out = loss(Masked(unmasked_weight=0.25), perfect(seen), ids[:50])
    masked = seen[0][0] == CODES
    weight = jnp.where(masked, 1.0, 0.25)
    told = -jnp.log(SHARES)[ids[:50]]
    smooth = 0.9 * told - 0.1 * jnp.log(SHARES).mean()
    assert float((out.weight * out.value).sum() / out.weight.sum()) == pytest.approx(
        float((weight * smooth).sum() / weight.sum()), rel=1e-5
    )


def test_without_weight_visible_tokens_do_not_count(ids):
    def telling(x, t, cond, **kw):  # certain of what it sees, and wrong about it
        return Prediction(x=jnp.where((x == CODES)[..., None], 0.0, 50.0 * jax.nn.one_hot((x + 1) % CODES, CODES)))

    predict = dataclasses.replace(perfect(), call=telling)
    out = loss(Masked(label_smoothing=0.0, unmasked_weight=0.0), predict, ids[:20])
    np.testing.assert_allclose(out.value, math.log(CODES), rtol=1e-5)


def test_bounds_of_a_perfect_network_are_the_entropy(ids):
    """Tokens are independent here, so that no order loses anything: both bounds are tight."""
    entropy = -float((SHARES * jnp.log(SHARES)).sum())
    bound = likelihood_bound(perfect(), ids, Cond(), Draw(3).at(jnp.arange(ROWS)))
    assert float(bound.mean()) == pytest.approx(entropy, abs=4 * float(bound.std()) / math.sqrt(ROWS))
    for schedule in ("linear", "cosine"):
        out = loss(MaskedDiffusion(schedule=schedule, earliest=1e-4), perfect(), ids)
        assert float(out.value.mean()) == pytest.approx(entropy, abs=4 * float(out.value.std()) / math.sqrt(ROWS))
        np.testing.assert_allclose(out.metrics["bits_per_token"], out.value / math.log(2), rtol=1e-6)
    bits = Masked().bits(perfect(), ids, Cond(), Draw(3).at(jnp.arange(ROWS)))
    np.testing.assert_allclose(bits, bound / math.log(2), rtol=1e-6)


def test_counts_are_the_plan_s_and_the_pass_before_hides_more(ids):
    seen, before = [], []
    predict = dataclasses.replace(perfect(seen), average=perfect(before))
    process = Masked(counts=BatchCounts(), unmasked_weight=0.0)
    loss(process, predict, ids[:30], Plan(masked=3, hidden=4))
    (x, _, kw), (earlier, t, kw_before) = seen[0], before[0]
    assert {name: kw[name] for name in ("masked", "fresh")} == {"masked": 3, "fresh": 4}
    assert kw_before == {"masked": 7} and bool((t == 7 / TOKENS).all())
    assert bool(((x == CODES).sum(1) == 3).all()) and bool(((earlier == CODES).sum(1) == 7).all())
    assert bool((earlier == CODES)[x == CODES].all())  # what is masked now was masked before


def test_plans_of_counts_are_few_and_as_likely_as_the_paper_s():
    counts = BatchCounts(ratios=4, hidden=3)
    plans = [counts.plan(step, 64) for step in range(4000)]
    assert len(set(plans)) <= 4 * (1 + 3)
    assert np.mean([plan.masked for plan in plans]) / 64 == pytest.approx(12 / 15, abs=0.02)
    assert np.mean([plan.hidden is not None for plan in plans]) == pytest.approx(0.5, abs=0.03)
    assert all(plan.masked + (plan.hidden or 0) <= 64 for plan in plans)
    assert counts.plan(7, 64) == counts.plan(7, 64)


def test_cross_entropy_smooths_over_all_codes():
    logits, ids = jnp.asarray([[[2.0, 0.0, -1.0]]]), jnp.asarray([[0]])
    log = jax.nn.log_softmax(logits)[0, 0]
    assert float(cross_entropy(logits, ids, 0.3)[0, 0]) == pytest.approx(-float(0.7 * log[0] + 0.3 * log.mean()))


def test_the_lowest_of_a_row_are_as_many_as_asked_for_with_ties_too():
    values = jnp.asarray([[3.0, 1.0, 1.0, 1.0], [0.0, jnp.inf, -1.0, 5.0]])
    assert lowest(values, jnp.asarray([[2], [1]])).tolist() == [[False, True, True, False], [False, False, True, False]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masked(schedule="cubic"), "mask schedule 'cubic' is none of cosine"),
        (lambda: Masked(label_smoothing=1.0), "label_smoothing is in"),
        (lambda: BatchCounts(ratios=9, hidden=4), "45 programs, more than 32"),
        (lambda: MaskedDiffusion(earliest=0.0), "earliest lies between 0 and 1"),
        (lambda: Masked().times(0), "1 or more steps"),
        (lambda: Masked(counts=BatchCounts()).bits(perfect(), None, Cond(), Draw(0)), "unsupported"),
    ],
)
def test_bad_settings_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()

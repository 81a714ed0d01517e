"""Usage and perplexity over a window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.tokenizers.quantize.usage import init, report, update

step_once = jax.jit(functools.partial(update, window=3))


def after(batches, window=3, codes=4):
    state = init(codes)
    for step, ids in enumerate(batches):
        state = step_once(state, jnp.asarray(ids), step)
    return report(state, len(batches) - 1, window)


def test_usage_is_of_the_last_updates_only():
    assert float(after([[0], [1], [2]])["usage"]) == 0.75
    assert float(after([[0], [1], [2], [2]])["usage"]) == 0.5  # 0 has left the window
    assert float(after([[0], [0], [0], [0]])["usage"]) == 0.25
    assert float(report(init(4), 0, 3)["usage"]) == 0


def test_perplexity_counts_the_codes_in_even_use():
    for count in (1, 2, 4):
        even = np.arange(8).reshape(2, 4) % count
        assert float(after([even] * 5)["perplexity"]) == pytest.approx(count, rel=1e-5)
    p = np.asarray([0.75, 0.25])
    expected = np.exp(-(p * np.log(p)).sum())
    assert float(after([[0, 0, 0, 1]] * 2)["perplexity"]) == pytest.approx(expected, rel=1e-5)
    assert float(report(init(4), 0, 3)["perplexity"]) == 1


def test_older_batches_weigh_less_by_the_window():
    p = np.asarray([2 / 3, 1]) / (2 / 3 + 1)  # window 3: an update takes a third of the earlier shares away
    expected = np.exp(-(p * np.log(p)).sum())
    assert float(after([[0, 0], [1, 1]])["perplexity"]) == pytest.approx(expected, rel=1e-5)


def test_microbatches_of_one_step_are_one_update():
    state = init(4)
    for ids in ([0], [1], [2]):
        state = step_once(state, jnp.asarray(ids), 7)
    assert float(report(state, 7, 3)["perplexity"]) == pytest.approx(3, rel=1e-5)
    assert float(report(state, 9, 3)["usage"]) == 0.75 and float(report(state, 10, 3)["usage"]) == 0


def test_perplexity_does_not_depend_on_the_number_of_microbatches():
    batches = np.random.default_rng(0).integers(0, 4, (5, 8)) * np.asarray([[0], [1], [1], [0], [1]])
    whole = parts = init(4)
    for step, ids in enumerate(batches):
        whole = step_once(whole, jnp.asarray(ids), step)
        for part in ids.reshape(4, 2):
            parts = step_once(parts, jnp.asarray(part), step)
    one, other = report(whole, 4, 3), report(parts, 4, 3)
    assert 1 < float(one["perplexity"]) == pytest.approx(float(other["perplexity"]), rel=1e-5)

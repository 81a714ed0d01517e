import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.draw import Draw
from maskdit.layers.dropout import block_draws, check_rate, drop_out, factors

X = jnp.ones((8, 50, 100))


def test_a_share_is_dropped_and_the_mean_stays():
    out = drop_out(X, 0.2, Draw(0), "x")
    assert set(np.unique(out)) == {0.0, np.float32(1.25)}
    # six standard deviations of a mean of 40,000 coins
    assert abs(float((out == 0).mean()) - 0.2) < 6 * 0.4 / 200
    for axis in range(3):  # and none along any axis is all there, or all gone
        share = np.asarray(out == 0).mean(axis)
        assert 0 < share.mean() < 1 and share.std() > 0


def test_nothing_is_dropped_without_a_draw_or_a_rate():
    assert factors(X.shape, 0.5, None, "x") is None and factors(X.shape, 0.0, Draw(0), "x") is None
    np.testing.assert_array_equal(drop_out(X, 0.5, None, "x"), X)


def test_rows_are_dropped_alike_in_any_batch():
    def dropped(rows):
        return drop_out(X[: len(rows)], 0.5, Draw(3).at(jnp.asarray(rows)), "x")

    whole = dropped(range(4))
    np.testing.assert_array_equal(jnp.concatenate([dropped([0, 1]), dropped([2, 3])]), whole)
    assert (whole[0] != whole[1]).any()


@pytest.mark.parametrize("draw", [Draw(1), Draw(1).at(jnp.arange(2))], ids=["one key", "a key per row"])
def test_each_block_has_a_draw_of_its_own(draw):
    blocks = block_draws(draw, 3)
    for i in range(3):
        own = jax.tree.map(lambda keys, i=i: keys[i], blocks)
        np.testing.assert_array_equal(own.uniform("x", (2, 5)), draw.at(i).uniform("x", (2, 5)))
    assert block_draws(None, 3) is None


@pytest.mark.parametrize("rate", (-0.1, 1, 1.5))
def test_what_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=f"attention_dropout is the share.*got {rate}"):
        check_rate("attention_dropout", rate)

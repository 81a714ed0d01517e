import jax
import jax.numpy as jnp
import numpy as np

from maskdit.performance.timing import MatrixProducts, Spread, alternate, counted


def test_spread_of_times_becomes_one_of_rates():
    spread = Spread.of([4.0, 1.0, 2.0])
    assert spread == Spread(2.0, 1.0, 4.0)
    assert spread.inverse(of=8.0) == Spread(4.0, 2.0, 8.0)
    assert spread.times(3.0) == Spread(6.0, 3.0, 12.0)


def test_turns_are_reversed_in_every_other_round():
    taken = []
    found = alternate({name: lambda name=name: taken.append(name) or len(taken) for name in "ab"}, rounds=3)
    assert "".join(taken) == "abbaab"
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_compilations_are_counted_once_and_only_while_counting():
    program = jax.jit(lambda x: jnp.tanh(x) * 3 + 1)
    with counted() as count:
        jax.block_until_ready(program(np.float32(1)))
        first = count.programs
        jax.block_until_ready(program(np.float32(2)))
    assert first >= 1 and count.programs == first
    before = count.programs
    jax.block_until_ready(program(np.zeros(3, np.float32)))
    assert count.programs == before


def test_matrix_products_have_a_rate():
    rate = MatrixProducts(rows=8, inner=4, outer=4, repeats=2).measure()
    assert rate.wall > 0 and rate.cpu > 0

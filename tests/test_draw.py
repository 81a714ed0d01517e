import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.draw import Draw, RepeatedDraw


def test_rows_do_not_depend_on_the_batch():
    draw = Draw(3).named("train").at(7)
    whole = draw.at(jnp.arange(6)).normal("noise", (6, 4))
    part = Draw(3).named("train").at(7).at(jnp.array([4, 1])).normal("noise", (2, 4))
    np.testing.assert_array_equal(part, whole[jnp.array([4, 1])])


def test_names_steps_and_rows_differ():
    draw = Draw(0)
    values = [
        draw.normal("a", (4,)),
        draw.normal("b", (4,)),
        draw.at(1).normal("a", (4,)),
        draw.named("part").normal("a", (4,)),
        draw.at(jnp.arange(4)).normal("a", (4,)),
    ]
    assert len({tuple(np.asarray(v).tolist()) for v in values}) == len(values)


def test_one_name_twice_is_an_error_and_order_does_not_matter():
    first, second = Draw(1), Draw(1)
    a, b = first.uniform("a", (3,)), first.uniform("b", (3,))
    np.testing.assert_array_equal(b, second.uniform("b", (3,)))
    np.testing.assert_array_equal(a, second.uniform("a", (3,)))
    with pytest.raises(RepeatedDraw, match="'a'"):
        first.normal("a", (3,))


def test_traced_index_equals_concrete_one_and_draws_travel_through_scan():
    draw = Draw(5).at(jnp.arange(2))
    scanned = jax.lax.scan(lambda d, i: (d, d.at(i).normal("x", (2, 3))), draw, jnp.arange(4))[1]
    np.testing.assert_array_equal(scanned[2], draw.at(2).normal("x", (2, 3)))


def test_rows_must_match_the_shape():
    with pytest.raises(ValueError, match="3 rows"):
        Draw(0).at(jnp.arange(3)).normal("x", (4, 2))
    with pytest.raises(ValueError, match="already has rows"):
        Draw(0).at(jnp.arange(3)).at(jnp.arange(3))

import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.draw import Draw
from maskdit.processes.masking import MaskSchedule, draw_kept, mean_where


def test_constant_ratio_keeps_the_papers_number_of_tokens():
    assert MaskSchedule(ratio=0.5).kept(256, 0.3) == 128
    assert MaskSchedule(ratio=0.75).kept(256, 0.3) == 64
    assert MaskSchedule(ratio=0.5, unmasked_from=0.8).kept(256, 0.8) is None
    assert MaskSchedule(ratio=0.0).kept(256, 0.0) is None


def test_changing_ratios_are_rounded_to_a_short_list():
    schedule = MaskSchedule(kind="cosine2", ratio=0.75, minimum=0.0, granularity=0.25)
    kept = [schedule.kept(64, step / 1000) for step in range(1001)]
    assert list(dict.fromkeys(kept)) == [16, 32, 48, None]


def test_kept_tokens_are_those_with_the_least_numbers():
    draw = Draw(0).at(jnp.arange(3))
    kept = draw_kept(draw, 3, 10, 4)
    numbers = Draw(0).at(jnp.arange(3)).uniform("mask", (3, 10))
    np.testing.assert_array_equal(jnp.take_along_axis(numbers, kept, 1), jnp.sort(numbers, 1)[:, :4])


def test_mean_where_ignores_the_others():
    values, chosen = jnp.array([[1.0, 100.0, 3.0]]), jnp.array([[1.0, 0.0, 1.0]])
    assert mean_where(values, chosen)[0] == 2.0


@pytest.mark.parametrize("fields", [{"kind": "cosin"}, {"ratio": 1.0}, {"granularity": 0.0}])
def test_bad_schedules_are_refused(fields):
    with pytest.raises(ValueError, match=r"schedule|ratios|granularity"):
        MaskSchedule(**fields)

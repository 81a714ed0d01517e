import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Cond, Layout, Plan, Predict, Prediction
from maskdit.draw import Draw
from maskdit.processes.edm import EDM

LAYOUT = Layout(grid=(2, 2), patch=2, channels=1)


def predictor(call):
    return Predict(call=call, null=lambda cond: cond, layout=LAYOUT)


def test_preconditioning_keeps_unit_variance():
    process, sigma = EDM(sigma_data=0.7), jnp.geomspace(0.01, 50, 9)
    skip, out, scale, _ = process.scalings(sigma)
    np.testing.assert_allclose(scale**2 * (sigma**2 + 0.49), 1, rtol=1e-5)
    target_variance = ((1 - skip) ** 2 * 0.49 + skip**2 * sigma**2) / out**2
    np.testing.assert_allclose(target_variance, 1, rtol=1e-4)
    np.testing.assert_allclose(process.weight(sigma) * out**2, 1, rtol=1e-5)


def test_network_that_predicts_its_target_has_no_loss():
    process, z = EDM(), jax.random.normal(jax.random.key(0), (4, 4, 4, 1)) * 0.5
    sigma = process.noise_levels.sample(Draw(2).at(jnp.arange(4)), 4)
    noise = Draw(2).at(jnp.arange(4)).normal("noise", z.shape)
    skip, out, _, _ = (c.reshape(4, 1, 1, 1) for c in process.scalings(sigma))
    target = (z - skip * (z + sigma.reshape(4, 1, 1, 1) * noise)) / out
    predict = predictor(lambda x, t, cond, keep: Prediction(x=target))
    loss = process.loss(predict, z, Cond(), Draw(2).at(jnp.arange(4)), step=0, plan=Plan())
    np.testing.assert_allclose(loss.value, 0, atol=1e-9)


def test_groups_cut_the_batch_into_noise_levels():
    process, z = EDM(), jnp.zeros((64, 4, 4, 1))
    predict = predictor(lambda x, t, cond, keep: Prediction(x=jnp.zeros_like(x)))
    groups = process.loss(predict, z, Cond(), Draw(0).at(jnp.arange(64)), step=0, plan=Plan()).bins
    np.testing.assert_array_equal(sum(groups.values()), np.ones(64))
    assert len(groups) == 4 and all(member.sum() > 0 for member in groups.values())


def test_levels_of_a_run_fall_from_sigma_max_to_zero():
    times = EDM().times(18)
    assert len(times) == 19 and times[-1] == 0
    np.testing.assert_allclose([times[0], times[-2]], [80.0, 0.002])
    assert np.all(np.diff(times) < 0)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        EDM().times(0)
    with pytest.raises(ValueError, match="spacing"):
        EDM().times(5, "ddim")
    with pytest.raises(ValueError, match="sigma_min"):
        EDM(sigma_min=3.0, sigma_max=1.0)

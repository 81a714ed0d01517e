import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.contracts import Cond, Layout, Predict, Prediction
from maskdit.draw import Draw
from maskdit.processes.ddpm import DDPM
from maskdit.processes.edm import EDM
from maskdit.samplers.ancestral import DDIM, Ancestral
from maskdit.samplers.guidance import ClassifierFree, WeakNetwork
from maskdit.samplers.heun import Euler, Heun
from maskdit.samplers.sampling import At, guided_runs, network_calls, sample

SPREAD = 0.5
LAYOUT = Layout(grid=(1, 1), patch=1, channels=1)


def edm_gaussian(process, mean=0.0):
    """The network whose denoiser is exact for data N(mean, SPREAD^2)."""

    def call(x, noise, cond):
        sigma = jnp.exp(4 * noise).reshape(-1, 1)
        skip, out, scale, _ = process.scalings(sigma)
        xt = x / scale
        best = (SPREAD**2 * xt + sigma**2 * (mean + cond.labels.get("shift", 0.0))) / (SPREAD**2 + sigma**2)
        return Prediction(x=(best - skip * xt) / out)

    null = lambda cond: cond.replace(labels=jax.tree.map(jnp.zeros_like, cond.labels))  # noqa: E731
    return Predict(call=call, null=null, layout=LAYOUT)


def ddpm_gaussian(process):
    """The network that predicts the exact noise of data N(0, SPREAD^2)."""

    def call(x, t, cond):
        alpha, sigma = (c.reshape(-1, 1) for c in process.alpha_sigma(t))
        return Prediction(x=sigma * x / (alpha**2 * SPREAD**2 + sigma**2))

    return Predict(call=call, null=lambda cond: cond, layout=LAYOUT)


def error(sampler):
    """Distance of a run's end from the exact solution of the flow of a Gaussian: x scales like its spread."""
    process = EDM(sigma_max=10.0)
    x = sample(process, sampler, edm_gaussian(process), Draw(0).at(jnp.arange(5)), (5, 1), Cond())
    start = Draw(0).at(jnp.arange(5)).normal("prior", (5, 1)) * 10
    return float(jnp.abs(x - start * SPREAD / np.sqrt(SPREAD**2 + 100)).max())


def test_solvers_converge_with_their_order():
    euler, heun = [error(Euler(n)) for n in (20, 80)], [error(Heun(n)) for n in (20, 80)]
    assert 3 < euler[0] / euler[1] < 6
    assert heun[0] / heun[1] > 10
    assert heun[1] < euler[1] / 10


@pytest.mark.parametrize(
    "sampler", [Heun(24), Heun(24, churn=10.0, churn_noise=1.0), DDIM(60), DDIM(400, eta=1.0), Euler(60)]
)
def test_samples_of_a_gaussian_have_its_spread(sampler):
    process = EDM(sigma_max=20.0)
    run = jax.jit(lambda d: sample(process, sampler, edm_gaussian(process), d, (4000, 1), Cond()))
    x = run(Draw(1).at(jnp.arange(4000)))
    assert abs(float(x.std()) / SPREAD - 1) < 0.06
    assert abs(float(x.mean())) < 0.04


@pytest.mark.parametrize("sampler", [Ancestral(500), DDIM(50), DDIM(250, spacing="ddim", eta=0.5), Heun(40)])
def test_discrete_process_is_sampled_by_every_solver(sampler):
    process = DDPM(steps=1000, learned_variance=False, fixed_variance="small")
    run = jax.jit(lambda d: sample(process, sampler, ddpm_gaussian(process), d, (4000, 1), Cond()))
    x = run(Draw(1).at(jnp.arange(4000)))
    assert abs(float(x.std()) / SPREAD - 1) < 0.06


def test_samples_do_not_depend_on_the_batch():
    process = EDM()
    run = lambda rows: sample(  # noqa: E731
        process, Heun(5, churn=3.0), edm_gaussian(process), Draw(1).at(rows), (len(rows), 1), Cond()
    )
    np.testing.assert_allclose(run(jnp.arange(6))[4:], run(jnp.array([4, 5])), rtol=1e-6)


def test_guidance_extrapolates_and_weight_one_makes_no_second_pass():
    process = EDM(sigma_max=10.0)
    cond = Cond(labels={"shift": jnp.full((3, 1), 0.5)})
    go = lambda guidance: sample(  # noqa: E731
        process, Euler(30), edm_gaussian(process), Draw(0).at(jnp.arange(3)), (3, 1), cond, guidance=guidance
    )
    plain, guided = go(None), go(ClassifierFree(weight=3.0))
    np.testing.assert_allclose(go(ClassifierFree(weight=1.0)), plain, rtol=1e-6)
    # the exact denoiser is linear in the shift, so weight 3 is the model with three times the shift
    tripled = sample(
        process,
        Euler(30),
        edm_gaussian(process),
        Draw(0).at(jnp.arange(3)),
        (3, 1),
        Cond(labels={"shift": jnp.full((3, 1), 1.5)}),
    )
    np.testing.assert_allclose(guided, tripled, rtol=1e-4)
    assert network_calls(Heun(10), process, LAYOUT, ClassifierFree(weight=1.0)) == 19
    assert network_calls(Heun(10), process, LAYOUT, ClassifierFree(weight=2.0)) == 38


def test_interval_cuts_runs_and_counts_passes():
    process = EDM()
    guidance = ClassifierFree(weight=2.0, interval=(0.2, 5.0))
    inside = sum(0.2 <= t <= 5.0 for t in process.times(12))
    assert network_calls(Euler(12), process, LAYOUT, guidance) == 12 + inside
    spaced = process.respace(process.times(12))
    runs = guided_runs(Euler(12), spaced, LAYOUT, guidance)
    assert [run.guided for run in runs] == [False, True, False]
    assert [run.start for run in runs[1:]] == [run.stop for run in runs[:-1]]


def test_first_channels_only_and_variance_of_the_conditional_half():
    def call(x, t, cond):
        shift = cond.labels["shift"][:, None]
        return Prediction(x=jnp.ones_like(x) * shift, aux={"variance": x + shift})

    null = lambda cond: Cond(labels={"shift": jnp.zeros_like(cond.labels["shift"])})  # noqa: E731
    predict = Predict(call=call, null=null, layout=LAYOUT)
    guided = ClassifierFree(weight=4.0, channels=3).wrap(predict)
    out = guided(jnp.zeros((2, 5)), jnp.ones(2), Cond(labels={"shift": jnp.ones(2)}), at=At(1.0, 0, 1))
    np.testing.assert_array_equal(out.x[0], [4, 4, 4, 1, 1])
    np.testing.assert_array_equal(out.aux["variance"], np.ones((2, 5)))


def test_weak_network_guides_away_from_it():
    process = EDM(sigma_max=10.0)
    strong, weak = edm_gaussian(process, mean=1.0), edm_gaussian(process, mean=0.0)
    go = lambda predict, **kw: sample(  # noqa: E731
        process, Euler(30), predict, Draw(0).at(jnp.arange(3)), (3, 1), Cond(), **kw
    )
    guided = go(strong, guidance=WeakNetwork(2.0), weak=weak)
    np.testing.assert_allclose(guided, go(edm_gaussian(process, mean=2.0)), rtol=1e-4)
    with pytest.raises(ValueError, match="weak"):
        go(strong, guidance=WeakNetwork(2.0))


def test_samplers_refuse_processes_they_cannot_walk():
    with pytest.raises(ValueError, match="DDPM process"):
        network_calls(Ancestral(5), EDM(), LAYOUT)
    with pytest.raises(ValueError, match="churn"):
        network_calls(dataclasses.replace(Heun(5), churn=1.0), DDPM(), LAYOUT)

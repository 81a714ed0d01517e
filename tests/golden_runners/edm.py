"""EDM: preconditioning, loss, Heun's sampler with and without churn, guidance by a second network, learning rates."""

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, Layout, Plan, Predict, Prediction
from maskdit.processes.edm import EDM
from maskdit.processes.times import LogNormal
from maskdit.samplers.guidance import WeakNetwork
from maskdit.samplers.heun import Heun
from maskdit.samplers.sampling import guided_runs
from maskdit.training.optim import InverseSqrt

INPUTS = (
    "precond_sigma",
    "precond_x",
    "loss_images",
    "loss_rnd_*",
    "loss_noise",
    "latents",
    "step_noise",
    "edm2_lr_nimg",
)
LEFT_OUT = {
    "precond_vp_*": "the VP preconditioning is not built",
    "precond_ve_*": "the VE preconditioning is not built",
    "precond_iddpm_*": "the iDDPM preconditioning is not built",
    "iddpm_*": "the iDDPM preconditioning is not built",
    "loss_vp": "the VP preconditioning is not built",
    "loss_ve": "the VE preconditioning is not built",
    "loss_edm2": "the loss with a learned uncertainty is not built",
    "ablation_*": "the generalised sampler is not built",
    "phema_*": "post-hoc averaging of parameters is not built",
}


def run(case):
    return {
        **preconditioning(case),
        **loss(case),
        **sampling(case),
        "edm2_lr": rates(case.config["lr"], case.arrays["edm2_lr_nimg"]),
    }


def network(seen):
    """F(x, c) = 0.7 sin(1.3 x) + 0.2 tanh(c), writing down what it receives."""

    def call(x, c, cond, keep=None):
        seen.append((x, c))
        return Prediction(x=0.7 * jnp.sin(1.3 * x) + 0.2 * jnp.tanh(c)[:, None, None, None])

    return Predict(call=call, null=lambda cond: cond, layout=Layout(grid=(1, 1), patch=1, channels=1))


def preconditioning(case):
    process, seen = EDM(**case.config["EDMPrecond"]), []
    sigma = jnp.asarray(case.arrays["precond_sigma"])
    denoised, _ = process.denoise(network(seen), case.images("precond_x"), sigma, Cond())
    [(given, c_noise)] = seen
    return {
        "precond_edm_denoised": case.stored(denoised),
        "precond_edm_model_input": case.stored(given),
        "precond_edm_c_noise": c_noise,
        "precond_edm_skip_out_in": np.stack(process.scalings(sigma)[:3], axis=1),
    }


def loss(case):
    """The network acts on each number alone, so that each number can be an example of its own."""
    config, images = case.config["EDMLoss"], case.arrays["loss_images"]
    process = EDM(sigma_data=config["sigma_data"], noise_levels=LogNormal(config["P_mean"], config["P_std"]))
    single = images.reshape(-1, 1, 1, 1)
    draw = case.draw(
        sigma=np.broadcast_to(case.arrays["loss_rnd_normal"], images.shape).reshape(-1),
        noise=case.arrays["loss_noise"].reshape(single.shape),
    )
    out = process.loss(network([]), single, Cond(), draw, step=jnp.zeros((), int), plan=Plan())
    return {"loss_edm": np.reshape(out.value, images.shape)}


class Bare(EDM):
    """The EDM process for a network that gives the denoised estimate itself."""

    def denoise(self, predict, xt, sigma, cond, **kw):
        prediction = predict(xt, sigma, cond, **kw)
        return prediction.x, prediction


def sampling(case):
    config = case.config
    process = Bare(sigma_min=config["sigma_min"], sigma_max=config["sigma_max"], rho=config["rho"])
    steps, weight = config["num_steps"], config["guidance"]
    churned = Heun(steps, config["S_churn"], config["S_min"], config["S_max"], config["S_noise"])
    with jax.enable_x64(True):  # the reference's states are float64
        plain, plain_seen = walk(case, process, Heun(steps))
        churn, churn_seen = walk(case, process, churned)
        guided, guided_seen = walk(case, process, Heun(steps), WeakNetwork(weight))
        return {
            "sigma_steps": process.times(steps),
            "heun_trajectory": case.stored(plain),
            "heun_sigmas_seen": [sigma[0] for _, sigma in plain_seen],
            "churn_trajectory": case.stored(churn),
            "churn_sigmas_seen": [sigma[0] for _, sigma in churn_seen],
            "churn_network_inputs": case.stored([x for x, _ in churn_seen]),
            "edm2_guided_result": case.stored(guided[-1]),
            "edm2_guided_inputs": case.stored([x for x, _ in guided_seen]),
        }


def walk(case, process, sampler, guidance=None):
    """The states of a run, the first included, and the inputs of the network."""
    seen = []
    predict, weak = denoiser(case.config["toy_mu"], seen), denoiser(case.config["toy_guide_mu"], [])
    draw = case.draw(prior=case.images("latents"), churn=case.images("step_noise"))
    cond = Cond(labels={"shift": jnp.asarray(case.config["labels"])})
    process = process.respace(sampler.grid(process, predict.layout))
    state = sampler.init(process, predict, draw, case.images("latents").shape, cond)
    states = [state.x]
    for part in guided_runs(sampler, process, predict.layout, guidance):
        chosen = guidance.wrap(predict, weak) if part.guided else predict
        for i in range(part.start, part.stop):
            state = sampler.step(process, chosen, state, i, part)
            states.append(state.x)
    return states, seen


def denoiser(mu, seen):
    """D(x, s) = (0.25 x + s^2 sin(mu + label + x / (1 + s))) / (0.25 + s^2), writing down what it receives."""

    def call(x, sigma, cond):
        seen.append((x, sigma))
        s, label = sigma[:, None, None, None], cond.labels["shift"][:, None, None, None]
        return Prediction(x=(0.25 * x + s**2 * jnp.sin(mu + label + x / (1 + s))) / (0.25 + s**2))

    return Predict(call=call, null=lambda cond: cond, layout=Layout(grid=(1, 1), patch=1, channels=1))


def rates(config, images):
    """EDM2 counts images where we count updates."""
    batch = config["batch_size"]
    schedule = InverseSqrt(config["ref_lr"], config["rampup_Mimg"] * 1e6 / batch, config["ref_batches"])
    return schedule.rate(np.asarray(images) / batch, 0)

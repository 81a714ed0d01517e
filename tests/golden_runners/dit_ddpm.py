"""Gaussian diffusion as DiT trains and samples it: tables, loss and variational bound, respacing, trajectories."""

import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, Plan, Predict, Prediction, bind
from maskdit.interop import dit as interop
from maskdit.processes.ddpm import DDPM
from maskdit.samplers.ancestral import DDIM, Ancestral, move
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import guided_runs

INPUTS = ("table_index", "x0", "noise", "t", "y", "z", "traj_y", "step_noise", "cfg_scale")
LEFT_OUT: dict[str, str] = {}
SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}


def run(case):
    x0, y = case.images("x0"), cond(case, "y")
    net, params = case.model(interop, x0, case.arrays["t"], y, file="torch/ema")
    process = diffusion(case.config["diffusion"])
    return {
        "tables": tables(process, case.arrays["table_index"]),
        **training(case, net, params, process, x0, y),
        **respaced(case.config, process),
        **trajectories(case, net, params, process),
    }


def diffusion(config):
    assert not config["use_kl"] and not config["rescale_learned_sigmas"], "this loss was never trained with"
    return DDPM(
        steps=config["diffusion_steps"],
        betas=SCHEDULES[config["noise_schedule"]],
        predicts="x0" if config["predict_xstart"] else "eps",
        learned_variance=config["learn_sigma"],
        fixed_variance="small" if config["sigma_small"] else "large",
    )


def cond(case, name):
    return Cond(labels={interop.LABEL: jnp.asarray(case.arrays[name])})


def spacing(text):
    """`timestep_respacing` of the reference as our `steps` and `spacing`: '10', 'ddim10' or '10,15,20'."""
    if text.startswith("ddim"):
        return {"steps": int(text.removeprefix("ddim")), "spacing": "ddim"}
    counts = tuple(int(count) for count in text.split(","))
    return {"steps": counts if len(counts) > 1 else counts[0], "spacing": None}


def tables(process, index):
    table = process.tables
    rows = (
        table["beta"],
        table["alpha_bar"],
        table["alpha_bar_prev"],
        np.sqrt(1 / table["alpha_bar"] - 1),
        table["posterior_variance"],
        table["posterior_log_variance"],
        table["posterior_x0"],
        table["posterior_xt"],
    )
    return np.stack(rows)[:, index]


def training(case, net, params, process, x0, y):
    t, noise = jnp.asarray(case.arrays["t"]), case.images("noise")

    @case.jit
    def loss_of(params, z, cond, draw):
        return process.loss(bind(net, params), z, cond, draw, step=jnp.zeros((), int), plan=Plan())

    loss = loss_of(params, x0, y, case.draw(t=t, noise=noise))
    alpha, sigma = (scale[:, None, None, None] for scale in process.alpha_sigma(t))
    xt = alpha * x0 + sigma * noise

    @case.jit
    def distributions(params, xt, c):
        estimate, out = process.denoise(bind(net, params), xt, t, c)
        mean, log = process.step_distribution(estimate, xt, t, out.aux.get("variance"))
        clipped, _ = process.step_distribution(jnp.clip(estimate, -1, 1), xt, t, out.aux.get("variance"))
        return mean, jnp.broadcast_to(log, mean.shape), estimate, clipped, joined(out)

    mean, log, estimate, clipped, out = distributions(params, xt, y)
    return {
        "x_t": case.stored(xt),
        "model_out": case.stored(out),
        **loss.metrics,  # mse and, where the variance is learned, vb
        "loss": loss.value,
        "q_post_mean": case.stored(process.posterior(x0, xt, t)[0]),
        "p_mean": case.stored(mean),
        "p_log_variance": case.stored(log),
        "p_pred_xstart": case.stored(estimate),
        "p_mean_clip": case.stored(clipped),
    }


def joined(prediction):
    return jnp.concatenate([prediction.x, *prediction.aux.values()], axis=-1)


def respaced(config, process):
    def kept(text):
        return process.respace(process.times(**spacing(text)))

    runs = {
        "respaced": config["timestep_respacing"],
        "ddim_spaced": config["ddim_respacing"],
        "sections": "10,15,20",
        "spaced250": "250",
    }
    maps = {f"map_{name}": kept(text).kept for name, text in runs.items()}
    return maps | {f"betas_{name}": kept(text).tables["beta"] for name, text in runs.items()}


def trajectories(case, net, params, process):
    config, z, y = case.config, case.images("z"), cond(case, "traj_y")
    plain, ddim = spacing(config["timestep_respacing"]), spacing(config["ddim_respacing"])
    predict = toy(case, net, params, process)
    draw = case.draw(prior=z, noise=case.images("step_noise"))
    guidance = ClassifierFree(weight=float(case.arrays["cfg_scale"]), channels=3)

    def walk(sampler, guidance=None):
        states = list(steps(process, sampler, predict, draw, z.shape, y, guidance))
        return [case.stored(state.x) for state in states], [case.stored(state.x0) for state in states]

    def three(x):
        return np.stack([x[0], x[len(x) // 2], x[-1]])

    ancestral, estimates = walk(Ancestral(**plain))
    clipped, _ = walk(Ancestral(**plain, clip=True))
    guided, _ = walk(Ancestral(**plain), guidance)
    times = process.times(**plain)[:-1][::-1]  # rising
    i = len(times) // 2
    x0, _ = process.denoise(predict, z, jnp.full((len(z),), times[i]), y)
    return {
        "ddpm_x": np.stack(ancestral),
        "ddpm_pred_x0_first_last": np.stack([estimates[0], estimates[-1]]),
        "ddpm_clip_x": np.stack([clipped[0], clipped[-1]]),
        "cfg_ddpm_x": np.stack([guided[0], guided[-1]]),
        "ddim_x": three(walk(DDIM(**plain))[0]),
        "ddim_eta_x": three(walk(DDIM(**ddim, eta=config["ddim_eta"]))[0]),
        "ddim_reverse": case.stored(move(process, z, x0, times[i], times[i + 1])),
    }


def toy(case, net, params, process):
    """eps(x, t) = sqrt(1 - alpha_bar) x + gain * network: trajectories stay well scaled."""
    gain = case.config["trajectory_gain"]

    def call(params, x, t, c):
        out = bind(net, params)(x, t, c)
        _, sigma = process.alpha_sigma(t)
        return Prediction(x=sigma[:, None, None, None] * x + gain * out.x, aux=out.aux)

    call = case.jit(call)
    return Predict(call=lambda x, t, c: call(params, x, t, c), null=net.null, layout=net.layout)


def steps(process, sampler, predict, draw, shape, y, guidance):
    """The states of `sample`, one by one."""
    process = process.respace(sampler.grid(process, predict.layout))
    state = sampler.init(process, predict, draw, shape, y)
    for part in guided_runs(sampler, process, predict.layout, guidance):
        chosen = guidance.wrap(predict) if part.guided else predict
        for i in range(part.start, part.stop):
            state = sampler.step(process, chosen, state, i, part)
            yield state

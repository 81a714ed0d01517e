"""MaskDiT: the bare network with and without masking, preconditioning, the masked loss, and sampling."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, Plan, Predict, bind
from maskdit.interop import maskdit as interop
from maskdit.layers.patch import patchify
from maskdit.processes.edm import EDM
from maskdit.processes.masking import MaskSchedule, draw_kept, mask_ratio, reconstruction
from maskdit.processes.times import LogNormal
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.heun import Euler, Heun
from maskdit.samplers.sampling import At, guided_runs, sample

INPUTS = (
    "x",
    "c_noise",
    "labels",
    "y",  # the labels again, as one-hot rows
    "mask_uniform",
    "sigma",
    "precond_x",
    "cfg_scale",
    "images",
    "loss_normal",
    "loss_noise",
    "z",
    "sample_labels",
    "churn_noise",
)
LEFT_OUT: dict[str, str] = {}


def run(case):
    config = case.config
    x, labels = case.images("x"), cond(case, "labels")
    net, params = case.model(interop, x, case.arrays["c_noise"], labels, file="torch/ema")
    process = EDM(
        sigma_data=config["sigma_data"],
        noise_levels=LogNormal(config["P_mean"], config["P_std"]),
        sigma_min=config["sigma_min"],
        sigma_max=config["sigma_max"],
        rho=config["rho"],
        reconstruction_weight=config["mae_loss_coef"],
    )
    tables = case.exported(interop, params)
    return {
        **{name: tables[f"model.{name}"] for name in ("pos_embed", "decoder_pos_embed") if f"model.{name}" in tables},
        **network(case, net, params, x, labels),
        **preconditioned(case, net, params, process, labels),
        **losses(case, net, params, process, labels),
        **sampling(case, net, params, process),
        "mask_ratio_schedule": [
            [
                mask_ratio(kind, progress, config["mask_ratio_scale"], config["mask_ratio_min"])
                for progress in config["mask_ratio_progress"]
            ]
            for kind in config["mask_ratio_schedules"]
        ],
    }


def cond(case, name):
    ids = jnp.asarray(case.arrays[name])
    return Cond(labels={interop.LABEL: ids} if case.config["num_classes"] else {})


def kept(case, net):
    return MaskSchedule(ratio=case.config["mask_ratio"]).kept(net.layout.tokens, 0.0)


def network(case, net, params, x, labels):
    predict = case.jit(lambda p, x, t, c, keep=None: bind(net, p)(x, t, c, keep=keep, taps=taps))
    named = {"tokens": "tokens_in", f"blocks_{net.depth - 1}": "enc_out"}
    if net.use_decoder:
        named["decoder_in"] = "dec_in"
    taps = tuple(named)
    rows, tokens = x.shape[0], net.layout.tokens
    draw = case.draw(mask=case.arrays["mask_uniform"])
    keep, order = draw_kept(draw, rows, tokens, kept(case, net)), draw_kept(draw, rows, tokens, tokens)
    out = predict(params, x, case.arrays["c_noise"], labels)
    masked = predict(params, x, case.arrays["c_noise"], labels, keep)
    return {
        **{name: out.taps[tap] for tap, name in named.items()},
        **{f"masked_{name}": masked.taps[tap] for tap, name in named.items()},
        "out": case.stored(out.x),
        "mask": masked.aux["mask"],
        "ids_keep": keep,
        "ids_restore": np.argsort(order, axis=1),
        "masked_out": case.stored(masked.x),
    }


def preconditioned(case, net, params, process, labels):
    x, sigma = case.images("precond_x"), jnp.asarray(case.arrays["sigma"])
    guidance = ClassifierFree(weight=float(case.arrays["cfg_scale"]))

    @case.jit
    def denoise(params, x, sigma, labels):
        return process.denoise(bind(net, params), x, sigma, labels)[0]

    @case.jit
    def guided(params, x, sigma, labels):
        return process.denoise(guidance.wrap(bind(net, params)), x, sigma, labels, at=At(sigma[0], 0, 1))[0]

    return {
        "precond_out": case.stored(denoise(params, x, sigma, labels)),
        "precond_cfg_out": case.stored(guided(params, x, jnp.full_like(sigma, sigma[0]), labels)),
    }


def losses(case, net, params, process, labels):
    images, normal = case.images("images"), case.arrays["loss_normal"]
    noise = case.images("loss_noise")
    draw = case.draw(sigma=normal, noise=noise, mask=case.arrays["mask_uniform"])
    keep = kept(case, net)

    def loss(process, keep):
        @case.jit
        def run(params, z, cond, draw):
            return process.loss(bind(net, params), z, cond, draw, step=jnp.zeros((), int), plan=Plan(keep=keep))

        return run(params, images, labels, draw)

    masked = loss(process, keep)
    sigma = process.noise_levels.sample(draw, len(images))
    noisy = images + sigma[:, None, None, None] * noise
    skip, out, _, _ = (scale[:, None, None, None] for scale in process.scalings(sigma))
    denoised = skip * noisy + out * masked.prediction.x
    return {
        "loss_sigma": sigma,
        "loss_masked": masked.value,
        "loss_masked_no_mae": masked.metrics["denoising"],
        "loss_unmasked": loss(process, None).value,
        "loss_D": case.stored(denoised),
        "mae_loss": reconstruction(denoised, noisy, masked.prediction.aux["mask"], net.layout),
        "patchify_images": patchify(images, net.layout.patch),
    }


def sampling(case, net, params, process):
    config, labels, z = case.config, cond(case, "sample_labels"), case.images("z")
    draw = case.draw(prior=z, churn=case.images("churn_noise"))
    forward = case.jit(lambda p, x, t, c: bind(net, p)(x, t, c))
    predict = Predict(call=lambda x, t, c: forward(params, x, t, c), null=net.null, layout=net.layout)
    guidance = ClassifierFree(weight=float(case.arrays["cfg_scale"]))
    steps = config["num_steps"]
    churned = Heun(steps, config["S_churn"], config["S_min"], config["S_max"], config["S_noise"])

    @case.jit
    def scanned(params, draw, labels):
        return sample(process, churned, bind(net, params), draw, z.shape, labels, guidance=guidance)

    calls = []
    final = walk(watched(process, calls), Heun(steps), guidance, predict, draw, z.shape, labels)
    return {
        "edm_call_sigma": [sigma[0] for _, sigma in calls],
        "edm_call_x": case.stored([x for x, _ in calls]),
        "edm_cfg_final": case.stored(final),
        "edm_final": case.stored(walk(process, Heun(steps), None, predict, draw, z.shape, labels)),
        "edm_churn_final": case.stored(scanned(params, draw, labels)),
        "edm_euler_final": case.stored(walk(process, Euler(steps), guidance, predict, draw, z.shape, labels)),
    }


def watched(process, calls):
    """The process, writing down the input and the noise level of each network call."""

    class Watched(type(process)):
        def denoise(self, predict, xt, sigma, cond, **kw):
            calls.append((xt, sigma))
            return super().denoise(predict, xt, sigma, cond, **kw)

    return Watched(**{field.name: getattr(process, field.name) for field in dataclasses.fields(process)})


def walk(process, sampler, guidance, predict, draw, shape, labels):
    """`sample`, step by step."""
    process = process.respace(sampler.grid(process, predict.layout))
    state = sampler.init(process, predict, draw, shape, labels)
    for part in guided_runs(sampler, process, predict.layout, guidance):
        chosen = guidance.wrap(predict) if part.guided else predict
        for i in range(part.start, part.stop):
            state = sampler.step(process, chosen, state, i, part)
    return state.x

"""RobustTok: the quantizer, the swap of near codes and its schedule."""

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Latents
from maskdit.interop.rules import Row, import_params
from maskdit.tasks.perturbation import LatentPerturbation, neighbours, redrawn
from maskdit.tokenizers.quantize.vq import VQ

INPUTS = ("z", "u", "r", "grad_w", "epochs")
LEFT_OUT: dict[str, str] = {}


def run(case):
    config, z = case.config, case.images("z")
    quantizer = VQ(
        codes=config["vocab_size"],
        channels=config["z_channels"],
        l2=config["codebook_norm"],
        commitment=config["beta_commit"],
    )
    shapes = jax.eval_shape(quantizer.init, jax.random.key(0), z)["params"]
    params = import_params([Row("embedding.weight", "codebook")], case.state(), shapes)
    codebook = quantizer.apply({"params": params}, method="codebook")
    swap = LatentPerturbation(alpha=config["alpha"], beta=config["beta"], delta=config["delta"], rows="first")
    rows = (z.shape[0], -1)
    draw = case.draw(  # numbers in the middle of the stretch that gives the recorded integer
        swap=case.arrays["u"].reshape(rows),
        neighbour=((case.arrays["r"] + 0.5) / config["delta"]).astype(np.float32).reshape(rows),
    )

    def perturbed(z):
        out = quantizer.apply({"params": params}, z)
        return swap.apply(Latents(values=out.values, aux=out.aux), codebook, draw).values, out

    (given, out), weights = case.jit(perturbed)(z), case.images("grad_w")
    near = neighbours(out.aux["z"], codebook, config["delta"])
    return {
        "z_q": case.stored(out.values),
        "vq_loss": out.losses["codebook"].mean(),
        "commit_loss": out.losses["commitment"].mean(),
        "nearest": near.reshape(-1, config["delta"]),
        "chosen": redrawn(near, draw, config["alpha"], config["delta"]).reshape(-1),
        "out": case.stored(given),
        "grad_z": case.stored(case.jit(jax.grad(lambda z: jnp.sum(weights * perturbed(z)[0])))(z)),
        "ratios": [LatentPerturbation(**row).ratio(case.arrays["epochs"]) for row in config["schedules"]],
    }

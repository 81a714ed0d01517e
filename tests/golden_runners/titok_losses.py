"""The losses of TiTok's second stage and of TA-TiTok's only one; the perceptual term is a stand-in."""

import pathlib
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from maskdit.config import build
from maskdit.interop import discriminator as interop
from maskdit.interop import layouts
from maskdit.interop.state_file import open_state
from maskdit.tasks.adversarial import Adversarial
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tokenizers.vae import VAE

INPUTS = ("image", "reconstruction", "reconstruction_2", "moments")
LEFT_OUT: dict[str, str] = {}


def run(case):
    losses = case.config["losses"]
    network = build(interop.from_reference(case.config))
    part = Adversarial(
        network,
        weight=losses["discriminator_weight"],
        start=losses["discriminator_start"],
        factor=losses["discriminator_factor"],
        lecam=losses["lecam_regularization_weight"],
        lecam_decay=losses.get("lecam_ema_decay", 0.999),
    )
    params = read(case, network)
    values = {}
    for name in ("stage2", "single_vq", "single_vae"):
        for when, step in (("before", part.start - 1), ("after", part.start)):
            values.update(generator(case, part, params, name, when, step))
    return values | discriminator(case, part, params)


def read(case, network):
    """The discriminator's parameters, from a file of the losses' module, which has them below a prefix."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), case.images("image"))["params"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "published")
        beside = {"ema_real_logits_mean": np.zeros(1, np.float32), "ema_fake_logits_mean": np.zeros(1, np.float32)}
        save_file({**case.state(), **beside}, path)
        return layouts.read(network, shapes, open_state(path))[0]


def generator(case, part, params, name, when, step):
    """The entries of one call of the generator's losses; images are recorded in [0, 1], ours lie in [-1, 1]."""
    losses, vae = case.config["losses"], name == "single_vae"
    weights = {losses["reconstruction_loss"]: losses["reconstruction_weight"]}
    errors = Reconstruction(
        **{"l1": 0.0, "l2": 0.0, **weights},
        logvar=losses.get("logvar_init", 0.0) if vae else 0.0,
        unit_range=True,
    )
    fed = case.config["fed_quantizer_losses"]

    def total(made):
        images, fake = 2 * case.images("image") - 1, 2 * made - 1
        gan = part.generator(part.apply(params, fake))
        entries = {
            "reconstruction_loss": errors.value(images, fake),
            "perceptual_loss": losses["perceptual_weight"] * stand_in(case.images("image"), made),
            "weighted_gan_loss": part.generator_weight(step) * gan,
        }
        if vae:
            entries["kl_loss"] = losses.get("kl_weight", 1e-6) * divergence(case)
        else:
            entries["quantizer_loss"] = losses["quantizer_weight"] * fed["quantizer_loss"]
        value = sum(jnp.mean(entry) for entry in entries.values())
        judged = part.factor > 0 and part.weight > 0
        return value, entries | {"gan_loss": part.started(step) * gan * judged}

    (value, entries), slope = case.jit(jax.value_and_grad(total, has_aux=True))(case.images("reconstruction"))
    if not vae:
        entries |= {key: fed[key] for key in ("commitment_loss", "codebook_loss")}
    entries["total_loss"] = value
    made = {f"{name}_{when}_{key}": np.mean(entry, dtype=np.float32) for key, entry in entries.items()}
    recorded = f"{name}_{when}_grad_reconstruction"
    return made | ({recorded: case.stored(slope)} if recorded in case.arrays else {})


def divergence(case):
    """That of the recorded posterior, as an autoencoder of ours has it."""
    moments = case.images("moments")
    return VAE(latent_channels=moments.shape[-1] // 2).posterior(moments).aux["kl"]


def stand_in(images, made):
    """The mean gap between means of 2x2 pixels."""
    return jnp.abs(nn.avg_pool(images - made, (2, 2), strides=(2, 2))).mean((1, 2, 3))


def discriminator(case, part, params):
    """Three calls of the discriminator's losses, each with the running means of the one before."""

    @case.jit
    def call(params, fake, state, step):
        def total(params):
            images = 2 * case.images("image") - 1
            value, terms, metrics, after = part.discriminator_loss(params, images, 2 * fake - 1, state, step)
            return value.mean() + sum(terms.values()), (terms, metrics, after)

        return jax.value_and_grad(total, has_aux=True)(params)

    config, values = case.config, {}
    state = {side: jnp.float32(config.get(f"ema_{side}_before", 0.0)) for side in ("real", "fake")}
    for number, name in enumerate(("reconstruction", "reconstruction_2"), 1):
        (value, (terms, metrics, state)), slope = call(params, case.images(name), state, part.start)
        entries = {
            "loss": value,
            "grad_last_bias": slope["conv_out"]["bias"],
            "logits_real": metrics["logits_real"].mean(),
            "logits_fake": metrics["logits_fake"].mean(),
            "lecam_loss": terms.get("lecam", np.zeros(())),
            "ema_real": np.reshape(state["real"], 1),
            "ema_fake": np.reshape(state["fake"], 1),
        }
        made = {f"disc_step{number}_{key}": entry for key, entry in entries.items()}
        values |= {key: entry for key, entry in made.items() if key in case.arrays}
    (value, _), _ = call(params, case.images("reconstruction"), state, part.start - 1)
    return values | {"disc_before_loss": value}

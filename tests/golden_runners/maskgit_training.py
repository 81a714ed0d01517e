"""MaskGIT's training as TiTok's generator does it: masks, loss and gradients."""

import jax
import jax.numpy as jnp

from maskdit.contracts import Cond, Plan, bind, dropped
from maskdit.interop import titok_generator as interop
from maskdit.interop.rules import export_params
from maskdit.processes.masked import Masked, cross_entropy

INPUTS = ("tokens", "u_*", "labels")
LEFT_OUT: dict[str, str] = {}


def run(case):
    config, arrays = case.config, case.arrays
    ids, labels = jnp.asarray(arrays["tokens"]), Cond(labels={interop.LABEL: jnp.asarray(arrays["labels"])})
    net, params = case.model(interop, ids, jnp.ones(len(ids)), labels, file="safetensors")
    cond = dropped(labels, net.null(labels), jnp.asarray(arrays["u_drop"]) < config["cond_drop_prob"])
    losses = config["losses"]
    process = Masked(
        schedule="arccos",
        label_smoothing=losses["label_smoothing"],
        unmasked_weight=losses["loss_weight_unmasked_token"],
    )

    def objective(params):
        draw = case.draw(time=arrays["u_time"], order=arrays["u_order"])
        out = process.loss(bind(net, params), ids, cond, draw, step=jnp.zeros((), int), plan=Plan())
        return (out.weight * out.value).sum() / out.weight.sum(), out

    (loss, out), slope = case.jit(jax.value_and_grad(objective, has_aux=True))(params)
    logits = out.prediction.x
    masked = process.masks(ids, case.draw(time=arrays["u_time"], order=arrays["u_order"]), Plan())
    weight = jnp.where(masked, 1.0, process.unmasked_weight)

    def of_logits(logits):
        return (weight * cross_entropy(logits, ids, process.label_smoothing)).sum() / weight.sum()

    back = export_params(interop.table(config), slope, fixed=False)
    return {
        "masks": masked,
        "masked_ids": jnp.where(masked, net.layout.vocabulary, ids),
        "logits": logits,
        "loss": loss,
        "correct_tokens": out.metrics["accuracy"].mean(),
        "grad_logits": jax.grad(of_logits)(logits),
        **{f"grad/{name}": back[name] for name in config["grad_of"]},
    }

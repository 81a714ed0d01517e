"""TiTok's vector quantizer: with and without normalisation, its losses and gradients, its clustering of codes."""

import jax
import jax.numpy as jnp

from maskdit.interop.rules import Row, export_params, import_params
from maskdit.tokenizers.quantize.ema import EMAVQ
from maskdit.tokenizers.quantize.vq import VQ

INPUTS = ("z", "upstream", "probabilities", "ids", "cluster_embed_prob_before")
LEFT_OUT: dict[str, str] = {}
TABLE = [Row("embedding.weight", "codebook")]


def run(case):
    values = {
        f"{name}_{key}": value
        for name, l2 in (("l2", True), ("plain", False))
        for key, value in quantized(case, l2).items()
    }
    return values | clustered(case)


def quantized(case, l2):
    config, z = case.config, case.images("z")
    vq = VQ(config["codebook_size"], config["token_size"], l2=l2, commitment=config["commitment_cost"])
    shapes = jax.eval_shape(vq.init, jax.random.key(0), z)["params"]
    params = import_params(TABLE, case.state(), shapes)
    upstream = case.images("upstream")

    def scalar(params, z):
        out = vq.apply({"params": params}, z)
        losses = {name: loss.mean() for name, loss in out.losses.items()}
        return config["loss_weight"] * sum(losses.values()) + jnp.sum(upstream * out.values), (out, losses)

    grads, (out, losses) = case.jit(jax.grad(scalar, (0, 1), has_aux=True))(params, z)
    look_up = case.jit(lambda params, ids: vq.apply({"params": params}, ids, method="look_up"))
    return {
        "z_quantized": case.stored(out.values),
        "min_encoding_indices": out.ids,
        "quantizer_loss": sum(losses.values()),
        "commitment_loss": losses["commitment"],
        "codebook_loss": losses["codebook"],
        "grad_z": case.stored(grads[1]),
        "grad_codebook": export_params(TABLE, grads[0])["embedding.weight"],
        "entries": look_up(params, case.arrays["ids"]),
        "soft_entries": look_up(params, case.arrays["probabilities"]),
    }


def clustered(case):
    """Ours moves codes that are averages; with a decay of one averages stay, as between the reference's gradients."""
    config, z = case.config, case.images("z")
    vq = EMAVQ(config["codebook_size"], config["token_size"], decay=1.0, cluster=0.99)
    variables = vq.init(jax.random.key(0), z)
    codes = jnp.asarray(case.state()["embedding.weight"])
    state = {**variables["state"], "codebook": codes, "sum": codes, "share": case.arrays["cluster_embed_prob_before"]}
    out, after = vq.apply({"state": state}, z, train=True, mutable=["state"])
    return {
        "cluster_embed_prob": after["state"]["share"],
        "cluster_codebook": after["state"]["codebook"],
        "cluster_min_encoding_indices": out.ids,
    }

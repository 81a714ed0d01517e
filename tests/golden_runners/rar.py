"""RAR: logits in a random order, in raster order and without condition, and the training loss with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, Plan, bind, dropped
from maskdit.interop import rar as interop
from maskdit.interop.rules import export_params
from maskdit.processes.autoregressive import Autoregressive

INPUTS = ("ids", "labels_class", "u_drop", "orders")
LEFT_OUT: dict[str, str] = {}


def run(case):
    ids, orders = jnp.asarray(case.arrays["ids"]), jnp.asarray(case.arrays["orders"])
    labels = Cond(labels={interop.LABEL: jnp.asarray(case.arrays["labels_class"])})
    rows, times = len(ids), jnp.zeros(len(ids))
    net, params = case.model(interop, ids, times, labels, file="torch")
    drop = jnp.asarray(case.arrays["u_drop"]) < case.config["cond_drop_prob"]
    cond = dropped(labels, net.null(labels), drop)

    @case.jit
    def logits(params, cond, orders):
        return bind(net, params)(ids, times, cond, orders=orders, taps=("logits",)).taps["logits"]

    process = Autoregressive(anneal_start=1, anneal_end=2)
    # numbers whose rank is the place in the order
    scores = np.argsort(orders, axis=1) / ids.shape[1]
    draw = case.draw(order=scores.astype(np.float32), random=np.zeros(rows, np.float32))

    def loss(params):
        out = process.loss(bind(net, params), ids, cond, draw, step=jnp.zeros((), int), plan=Plan())
        return out.value.mean(), out.metrics["accuracy"].mean()

    (value, accuracy), slope = case.jit(jax.value_and_grad(loss, has_aux=True))(params)
    slopes = export_params(interop.table(case.config), slope, fixed=False)
    wanted = [name.partition("/")[2] for name in case.arrays if name.startswith("grad/")]
    return {
        "condition": cond.labels[interop.LABEL] + net.vocabulary + 1,
        "logits": logits(params, cond, orders),
        "logits_raster": logits(params, cond, None),
        "logits_none": logits(params, net.null(cond), orders),
        "labels": np.take_along_axis(ids, process.orders(ids.shape, draw, jnp.zeros((), int)), axis=1),
        "loss": value,
        "correct_tokens": accuracy,
        **{f"grad/{name}": slopes[name] for name in wanted},
    }

"""ENAT's training: loss and gradients without and with the features of a pass before."""

import dataclasses

import jax
import jax.numpy as jnp

from maskdit.contracts import Cond, Plan, bind
from maskdit.interop import enat as interop
from maskdit.interop.rules import export_params
from maskdit.processes.masked import BatchCounts, Masked, hidden_count, masked_count

INPUTS = ("x0", "context", "mask_ratio", "u_*")
LEFT_OUT: dict[str, str] = {}


def watched(predict, calls):
    """The bound network, writing down the ids that it is called on."""

    def call(ids, *args, **kw):
        calls.append(ids)
        return predict.call(ids, *args, **kw)

    return dataclasses.replace(predict, call=call)


def run(case):
    ids, labels = jnp.asarray(case.arrays["x0"]), Cond(labels={interop.dit.LABEL: case.arrays["context"][:, 0]})
    net, params = case.model(interop, ids, jnp.ones(len(ids)), labels, file="torch", counters=interop.UNUSED)
    masked = masked_count(float(case.arrays["mask_ratio"]), net.layout.tokens)
    hidden = hidden_count(float(case.arrays["u_visible"][0]), net.layout.tokens - masked)
    process = Masked(label_smoothing=0.1, unmasked_weight=0.0, counts=BatchCounts(reuse=0.5))

    def trained(plan):
        def loss(params):
            calls = []
            average = watched(bind(net, params), calls)
            predict = watched(bind(net, params, average=average), calls)
            draw = case.draw(order=case.arrays["u_order"], hidden=case.arrays["u_remask"])
            out = process.loss(predict, ids, labels, draw, step=jnp.zeros((), int), plan=plan)
            return jnp.sum(out.weight * out.value) / jnp.sum(out.weight), (calls, out.prediction.x)

        (value, (calls, logits)), slope = case.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return value, calls, logits, export_params(interop.table(case.config), slope, fixed=False)

    out = {}
    for kind, plan in (("plain", Plan(masked=masked)), ("reuse", Plan(masked=masked, hidden=hidden))):
        value, calls, logits, slopes = trained(plan)
        out |= {f"{kind}_loss": value, f"{kind}_pred": logits, f"{kind}_masked_ids": calls[-1]}
        if kind == "reuse":
            out["reuse_earlier_ids"] = calls[0]
        wanted = [name.partition("/")[2] for name in case.arrays if name.startswith(f"{kind}_grad/")]
        out |= {f"{kind}_grad/{name}": slopes[name] for name in wanted}
    return out

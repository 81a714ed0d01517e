"""DiT: one forward pass with its inner values, label dropping, and both kinds of guidance."""

import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Cond, bind, dropped
from maskdit.interop import dit as interop
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.sampling import At

INPUTS = ("x", "t", "y", "force_drop_ids", "cfg_x", "cfg_t", "cfg_y", "cfg_scale")
LEFT_OUT: dict[str, str] = {}


def cond(ids):
    return Cond(labels={interop.LABEL: jnp.asarray(ids)})


def joined(prediction):
    """The prediction and the variance values as one array, as the reference gives them."""
    return np.concatenate([prediction.x, *prediction.aux.values()], axis=-1)


def run(case):
    x, t, y = case.images("x"), case.arrays["t"], cond(case.arrays["y"])
    net, params = case.model(interop, x, t, y, file="torch")
    predict = case.jit(lambda p, x, t, c, taps=(): bind(net, p)(x, t, c, taps=taps), static_argnames="taps")
    last = f"blocks_{net.depth - 1}"
    wanted = {
        "t_emb": "t_emb",
        "y_emb": "y_emb",
        "tokens_in": "tokens",
        "block0_attn": "blocks_0.attn",
        "block0_mlp": "blocks_0.mlp",
        "block0_out": "blocks_0",
        "blocks_out": last,
        "final_tokens": "final",
    }
    out = predict(params, x, t, y, taps=tuple(sorted(set(wanted.values()))))
    drop = jnp.asarray(case.arrays["force_drop_ids"]) == 1
    without = predict(params, x, t, dropped(y, net.null(y), drop), taps=("y_emb",))
    return {
        "pos_embed": case.exported(interop, params)["pos_embed"],
        "out": case.stored(joined(out)),
        "y_emb_dropped": without.taps["y_emb"],
        **{name: out.taps[tap] for name, tap in wanted.items()},
        **guided(case, net, params),
    }


def guided(case, net, params):
    """The reference returns both halves of a doubled batch, each with the unguided channels of its own."""
    half = len(case.arrays["cfg_x"]) // 2
    x, t, y = case.images("cfg_x")[:half], case.arrays["cfg_t"][:half], case.arrays["cfg_y"]
    predict = case.jit(lambda p, x, t, c: bind(net, p)(x, t, c))
    own = [joined(predict(params, x, t, cond(ids))) for ids in (y[:half], y[half:])]

    def both_halves(channels):
        guidance = ClassifierFree(weight=weight, channels=channels)
        call = case.jit(lambda p, x, t, c: guidance.wrap(bind(net, p))(x, t, c, at=At(t[0], 0, 1)))
        out = call(params, x, t, cond(y[:half]))
        count = out.x.shape[-1] if channels is None else channels
        halves = [np.concatenate([out.x[..., :count], rest[..., count:]], axis=-1) for rest in own]
        halves[0] = joined(out)
        return case.stored(np.concatenate(halves))

    weight = float(case.arrays["cfg_scale"])
    return {
        "cfg_model_out": case.stored(np.concatenate(own)),
        "cfg_out_first3": both_halves(3),
        "cfg_out_all": both_halves(None),
    }

"""How much of a codebook is used: a window over the last updates, kept as a task's state on the device.

state = update(init(codes), ids, step, window)
report(state, step, window)  # {"usage": ..., "perplexity": ...}
"""

import jax.numpy as jnp

from maskdit.contracts import Array

_NEVER = -(2**30)  # a step before all, far from where the difference of two steps overflows


def init(codes: int) -> dict[str, Array]:
    """The state before any update: `seen`, the update each code was last used at, `share`, decayed shares, and `step`,
    the last update."""
    never = jnp.full((codes,), _NEVER, jnp.int32)
    return {"seen": never, "share": jnp.zeros((codes,), jnp.float32), "step": jnp.int32(_NEVER)}


def update(state: dict[str, Array], ids: Array, step: Array | int, window: int) -> dict[str, Array]:
    """The state after an update.

    Args:
      state: from `init` or before.
      ids: of the batch, of any shape.
      step: number of the update, int32; steps may come again (microbatches), but not go back.
      window: of how many updates the decayed shares are, about: each update takes `1 / window` of them away,
        however many microbatches it has.
    """
    step = jnp.asarray(step, jnp.int32)
    counts = jnp.zeros(state["share"].shape, jnp.float32).at[ids.reshape(-1)].add(1.0)
    decayed = state["share"] * jnp.where(step > state["step"], 1 - 1 / window, 1.0)
    share = decayed + counts / (window * ids.size)
    return {"seen": jnp.where(counts > 0, step, state["seen"]), "share": share, "step": step}


def report(state: dict[str, Array], step: Array | int, window: int) -> dict[str, Array]:
    """Figures after the update number `step`, scalars.

    Returns:
      `usage`: the share of codes seen in the last `window` updates; `perplexity`: the exponential of the entropy of
      the decayed shares, which is the number of codes where all are used alike, and 1 before any update.
    """
    p = state["share"] / jnp.maximum(state["share"].sum(), 1e-30)
    entropy = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1.0)))
    return {"usage": jnp.mean(step - state["seen"] < window), "perplexity": jnp.exp(entropy)}

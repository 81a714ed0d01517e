"""The bottleneck of KL autoencoders: a diagonal normal distribution for each position (Kingma and Welling 2013)."""

import jax.numpy as jnp

from maskdit.contracts import Array, Draw, Latents

LOGVAR_RANGE = (-30.0, 20.0)


def normal_posterior(moments: Array, draw: Draw | None = None, *, scale: float = 1.0, shift: float = 0.0) -> Latents:
    """The latents that belong to moments.

    Args:
      moments: `[B, ..., 2c]`, mean and log variance, which is clamped here.
      draw: where given, latents are drawn from the posterior, else they are its mean. Draws: `posterior` (normal).
      scale, shift: a generator sees `(z - shift) * scale`.

    Returns:
      Latents with `values` `[B, ..., c]` and in `aux`: `moments`, float32; `kl` `[B]`, the divergence of the posterior
      from the standard normal in nats, summed over positions and channels.
    """
    moments = moments.astype(jnp.float32)
    mean, logvar = jnp.split(moments, 2, axis=-1)  # [B, ..., c]
    logvar = jnp.clip(logvar, *LOGVAR_RANGE)
    z = mean if draw is None else mean + jnp.exp(0.5 * logvar) * draw.normal("posterior", mean.shape)
    terms = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    kl = terms.reshape(len(terms), -1).sum(axis=1)
    return Latents(values=(z - shift) * scale, aux={"moments": moments, "kl": kl})

"""SoftVQ (Chen et al. 2024, "SoftVQ-VAE", arXiv 2412.10958): softmax-weighted means of codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Array, Draw, Quantized
from maskdit.tokenizers.quantize.distance import entropies, normalised

ENTROPY_TEMPERATURE = 0.01
"""Of the softmax in the entropy loss, whatever `tau` is, as published."""
ENTROPY_EPSILON = 1e-6


class SoftVQ(nn.Module):
    """Every token becomes a mean of codes; the positions are cut into equal runs, each with a codebook of its own.

    Its parameter is `codebook` `[codebooks, codes, channels]`.

    Attributes:
      codes: size of one codebook.
      channels: numbers per token.
      codebooks: number of codebooks.
      l2: whether tokens and codes are divided by their lengths first; their means are not.
      tau: temperature of the weights.
      entropy: weight of the entropy loss over the batch; zero for none.
    """

    codes: int = 8192
    channels: int = 32
    codebooks: int = 4
    l2: bool = True
    tau: float = 0.07
    entropy: float = 0.01

    def setup(self) -> None:
        """Makes the codebooks."""
        shape = (self.codebooks, self.codes, self.channels)
        self.raw = self.param("codebook", nn.initializers.normal(1.0), shape, jnp.float32)

    def codebook(self) -> Array:
        """The codes `[codebooks, codes, channels]` as tokens are compared with them."""
        return normalised(self.raw) if self.l2 else jnp.asarray(self.raw, jnp.float32)

    def __call__(self, z: Array, *, draw: Draw | None = None, train: bool = False) -> Quantized:
        """Softly quantizes tokens.

        Args:
          z: `[B, ..., channels]`.
          draw, train: part of the contract; not used.

        Returns:
          `values` `[B, ..., channels]`; `ids` `[B, ...]` of the likeliest codes, each in its token's codebook;
          `losses`: the scalar `entropy` unless its weight is zero; `aux`: `z` as it was compared, and the scalars
          `confidence`, the mean of the largest weight, and `cosine`, the mean similarity of tokens and values.

        Raises:
          ValueError: where the tokens do not divide into the codebooks.
        """
        z = normalised(z) if self.l2 else z.astype(jnp.float32)
        codebook, cut = self.codebook(), self._cut(z, z.shape[-1])  # [K, V, c], [B, K, n, c]
        # the codes learn from the means, not from the weights, as published
        logits = jnp.einsum("bknc,kvc->bknv", cut, jax.lax.stop_gradient(codebook), precision=jax.lax.Precision.HIGHEST)
        weights = jax.nn.softmax(logits / self.tau)
        values = jnp.einsum("bknv,kvc->bknc", weights, codebook, precision=jax.lax.Precision.HIGHEST).reshape(z.shape)
        ids = jnp.argmax(logits, axis=-1).astype(jnp.int32).reshape(z.shape[:-1])
        losses = {}
        if self.entropy:
            flat = logits.reshape(-1, self.codes) / ENTROPY_TEMPERATURE
            unsure, spread = entropies(flat, ENTROPY_EPSILON)
            losses["entropy"] = self.entropy * (unsure - spread)
        cosine = jnp.sum(normalised(z) * normalised(values), axis=-1).mean()
        aux = {"z": z, "confidence": weights.max(axis=-1).mean(), "cosine": cosine}
        return Quantized(values=values, ids=ids, losses=losses, aux=aux)

    def look_up(self, ids: Array) -> Array:
        """The codes of `ids` `[B, ...]`, each of its position's codebook: `[B, ..., channels]`."""
        cut = self._cut(ids, 1)[..., 0]  # [B, K, n]
        return self.codebook()[jnp.arange(self.codebooks)[:, None], cut].reshape(*ids.shape, self.channels)

    def _cut(self, x: Array, last: int) -> Array:
        batch, positions = x.shape[0], x.size // (x.shape[0] * last)
        if positions % self.codebooks:
            raise ValueError(
                f"{positions} tokens do not divide into codebooks={self.codebooks}: choose a divisor of the tokens"
            )
        return x.reshape(batch, self.codebooks, -1, last)

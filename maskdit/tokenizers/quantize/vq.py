"""Vector quantization with a codebook that is trained by gradient (van den Oord et al. 2017, arXiv 1711.00937).

The published relatives differ in fields: TiTok and LlamaGen compare normalised vectors (`l2`, Yu et al. 2021, arXiv
2110.04627) and put 0.25 on the commitment; MaskGIT's VQGAN puts it on the codebook; FVQ computes its codes (`bridge`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Array, Draw, Quantized
from maskdit.tokenizers.quantize.distance import (
    entropies,
    mean_square,
    normalised,
    squared_distances,
    straight_through,
    uniform_codes,
)
from maskdit.tokenizers.quantize.revival import next_idle, targets


class VQ(nn.Module):
    """The nearest code by squared distance.

    Its parameter is `codebook` `[codes, channels]`; with `revive` there is `idle` `[codes]` in the collection `state`.

    Attributes:
      codes: size of the vocabulary.
      channels: numbers per position.
      l2: whether features and codes are divided by their lengths first.
      commitment: weight of `|sg(code) - z|^2`, which moves the encoder.
      codebook_weight: weight of `|code - sg(z)|^2`, which moves the code.
      entropy: weight of the mean entropy of features over codes, less the entropy of their mean; zero for none.
      entropy_temperature: its softmax is that of `-distance / entropy_temperature`.
      bridge: a module that computes the codes from the parameter, such as `VQBridge`; None for the parameter itself.
      revive: codes that no feature of so many training calls was nearest to are pulled to features of the batch; zero
        for never.
      revive_weight: weight of that pull.
    """

    codes: int = 1024
    channels: int = 8
    l2: bool = False
    commitment: float = 0.25
    codebook_weight: float = 1.0
    entropy: float = 0.0
    entropy_temperature: float = 0.01
    bridge: Any = None
    revive: int = 0
    revive_weight: float = 1.0

    def setup(self) -> None:
        """Makes the codebook."""
        init = nn.initializers.normal(1.0) if self.l2 or self.bridge is not None else uniform_codes
        self.raw = self.param("codebook", init, (self.codes, self.channels), jnp.float32)
        self.idle = None
        # codes can be looked up without the state, which only training needs
        if self.revive and (self.is_mutable_collection("state") or self.has_variable("state", "idle")):
            self.idle = self.variable("state", "idle", jnp.zeros, (self.codes,), jnp.int32)

    def codebook(self) -> Array:
        """The codes `[codes, channels]` as features are compared with them: of length one with `l2`."""
        return normalised(self._codes()) if self.l2 else self._codes()

    def _codes(self) -> Array:
        codes = self.raw if self.bridge is None else self.bridge(self.raw)
        return jnp.asarray(codes, jnp.float32)

    def __call__(self, z: Array, *, draw: Draw | None = None, train: bool = False) -> Quantized:
        """Quantizes features.

        Args:
          z: `[B, ..., channels]`.
          draw: without one no code is revived. Draws: `revival` (uniform `[B, positions]`).
          train: whether codes are revived, and `idle` is counted.

        Returns:
          `values` and `ids` `[B, ...]`; `losses`: `commitment` and `codebook` `[B]`, with `entropy` the scalar
          `entropy`, and where codes are revived the scalar `revival`; `aux`: `z` as it was compared.
        """
        z = normalised(z) if self.l2 else z.astype(jnp.float32)
        codebook, flat = self.codebook(), z.reshape(-1, z.shape[-1])  # [V, c], [N, c]
        distances = squared_distances(flat, codebook)  # [N, V]
        ids = jnp.argmin(jax.lax.stop_gradient(distances), axis=1).astype(jnp.int32).reshape(z.shape[:-1])
        chosen = codebook[ids]  # [B, ..., c]
        held = jax.lax.stop_gradient
        losses = {
            "commitment": self.commitment * mean_square(held(chosen), z),
            "codebook": self.codebook_weight * mean_square(chosen, held(z)),
        }
        if self.entropy:
            unsure, spread = entropies(-distances / self.entropy_temperature)
            losses["entropy"] = self.entropy * (unsure - spread)
        if self.idle is not None and train:
            if draw is not None:
                dead = (self.idle.value >= self.revive).astype(jnp.float32)  # [V]
                losses["revival"] = self.revive_weight * _revival(dead, held(z), codebook, held(distances), draw)
            if self.is_mutable_collection("state") and not self.is_initializing():
                self.idle.value = next_idle(self.idle.value, ids)
        return Quantized(values=straight_through(z, chosen), ids=ids, losses=losses, aux={"z": z})

    def look_up(self, ids: Array) -> Array:
        """The codes of `ids` `[...]`: `[..., channels]`.

        For distributions over codes, `[..., codes]` in floating point, it is the mean code, normalised after with `l2`,
        as TiTok's quantizer has it for decoders that learn through a generator's predictions.
        """
        if jnp.issubdtype(ids.dtype, jnp.integer):
            return self.codebook()[ids]
        mean = jnp.matmul(ids, self._codes(), precision=jax.lax.Precision.HIGHEST)
        return normalised(mean) if self.l2 else mean


def _revival(dead: Array, z: Array, codebook: Array, distances: Array, draw: Draw) -> Array:
    """Mean squared distance of the codes where `dead` `[V]` is one to features that they are pulled to, a scalar."""
    goal = targets(z.reshape(z.shape[0], -1, z.shape[-1]), distances, draw)  # [V, c]
    return jnp.sum(dead * mean_square(codebook, goal)) / jnp.maximum(dead.sum(), 1.0)

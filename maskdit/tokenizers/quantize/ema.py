"""Vector quantization with a codebook of moving averages (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1)."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Array, Draw, PyTree, Quantized
from maskdit.tokenizers.quantize.distance import mean_square, normalised, squared_distances, straight_through
from maskdit.tokenizers.quantize.revival import anchored, dealt, next_idle
from maskdit.tokenizers.quantize.vq import VQ


class EMAVQ(nn.Module):
    """The nearest code by squared distance; each code is the average of the features that chose it.

    It has no parameters: `codebook` and `sum` `[codes, channels]`, `count` and `idle` `[codes]` are in the collection
    `state`, which is a function of the state before, the batch and the draw.

    Attributes:
      codes: size of the vocabulary.
      channels: numbers per position.
      l2: whether features and codes are divided by their lengths first.
      commitment: weight of `|sg(code) - z|^2`, which moves the encoder.
      decay: share of counts and sums that stays at an update.
      epsilon: added to every count (Laplace smoothing), so that codes of no weight can be divided by it.
      revive: codes that no feature of so many training calls was nearest to are replaced by random features of the
        batch; zero for never.
      cluster: codes are moved to their nearest features, the more the less they are used; this is the decay of their
        shares of use, `share` `[codes]` in the state (published: 0.99, which TiTok calls `clustering_vq`); zero for
        none.

    Raises:
      ValueError: for decays that are no shares.
    """

    codes: int = 1024
    channels: int = 8
    l2: bool = False
    commitment: float = 0.25
    decay: float = 0.99
    epsilon: float = 1e-5
    revive: int = 0
    cluster: float = 0.0

    def setup(self) -> None:
        """Makes the codes and their counts."""
        if not (0 <= self.decay <= 1 and 0 <= self.cluster < 1):
            raise ValueError(f"EMAVQ has decay={self.decay} and cluster={self.cluster}: give shares, cluster below 1")

        def start() -> Array:
            return jax.random.normal(self.make_rng("params"), (self.codes, self.channels), jnp.float32)

        self.average = self.variable("state", "codebook", start)
        self.sum = self.variable("state", "sum", lambda: jnp.copy(self.average.value))
        self.count = self.variable("state", "count", jnp.ones, (self.codes,), jnp.float32)
        self.idle = self.variable("state", "idle", jnp.zeros, (self.codes,), jnp.int32)
        if self.cluster:
            self.share = self.variable("state", "share", jnp.zeros, (self.codes,), jnp.float32)

    def codebook(self) -> Array:
        """The codes `[codes, channels]` as features are compared with them: of length one with `l2`."""
        return normalised(self.average.value) if self.l2 else jnp.asarray(self.average.value)

    def __call__(self, z: Array, *, draw: Draw | None = None, train: bool = False) -> Quantized:
        """Quantizes features with the codes as they are before the update.

        Args:
          z: `[B, ..., channels]`.
          draw: without one no code is replaced. Draws: `revival` (uniform `[B, positions]`).
          train: whether the codes are updated.

        Returns:
          `values` and `ids` `[B, ...]`; `losses`: `commitment` `[B]`; `aux`: `z` as it was compared.
        """
        z = normalised(z) if self.l2 else z.astype(jnp.float32)
        codebook, flat = self.codebook(), jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])  # [V, c], [N, c]
        distances = squared_distances(flat, codebook)  # [N, V]
        ids = jnp.argmin(distances, axis=1).astype(jnp.int32).reshape(z.shape[:-1])
        chosen = codebook[ids]  # [B, ..., c]
        if train and self.is_mutable_collection("state") and not self.is_initializing():
            self._update(flat.reshape(z.shape[0], -1, z.shape[-1]), ids.reshape(-1), distances, draw)
        losses = {"commitment": self.commitment * mean_square(chosen, z)}
        return Quantized(values=straight_through(z, chosen), ids=ids, losses=losses, aux={"z": z})

    def _update(self, z: Array, ids: Array, distances: Array, draw: Draw | None) -> None:
        """Moves counts, sums and codes; `z` `[B, P, c]`, `ids` `[B*P]`, `distances` `[B*P, V]`."""
        flat, new = z.reshape(-1, z.shape[-1]), 1 - self.decay
        chosen = jax.ops.segment_sum(jnp.ones(ids.shape, jnp.float32), ids, self.codes)
        count = self.decay * self.count.value + new * chosen
        total = self.decay * self.sum.value + new * jax.ops.segment_sum(flat, ids, self.codes)
        smooth = (count + self.epsilon) * count.sum() / (count.sum() + self.codes * self.epsilon)
        average, idle = total / smooth[:, None], next_idle(self.idle.value, ids)
        if self.cluster:
            self.share.value = self.cluster * self.share.value + (1 - self.cluster) * chosen / ids.size
            average = anchored(average, flat, distances, self.share.value, self.cluster)
            total = average * smooth[:, None]  # so that the next update starts from the moved code
        if self.revive and draw is not None:
            dead = idle >= self.revive
            fresh, line = dealt(dead, z, draw), dead[:, None]
            average, total = jnp.where(line, fresh, average), jnp.where(line, fresh, total)
            count, idle = jnp.where(dead, 1.0, count), jnp.where(dead, 0, idle)
        self.average.value, self.sum.value, self.count.value, self.idle.value = average, total, count, idle

    def look_up(self, ids: Array) -> Array:
        """The codes of `ids` `[...]`: `[..., channels]`."""
        return self.codebook()[ids]


def as_vq(quantizer: EMAVQ, state: Mapping[str, Array]) -> tuple[VQ, PyTree]:
    """A `VQ` that gives the same values and ids, and its parameters: for layouts whose codes are parameters.

    Args:
      quantizer: whose codes are averages.
      state: its own of the collection `state`.
    """
    made = VQ(quantizer.codes, quantizer.channels, l2=quantizer.l2, commitment=quantizer.commitment)
    return made, {"codebook": state["codebook"]}

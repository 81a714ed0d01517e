"""Quantizers of one bit per channel: look-up-free (LFQ) and binary spherical (BSQ).

Sources: Yu et al. 2023, "Language model beats diffusion", arXiv 2310.05737, section 3.1; Zhao et al. 2024, arXiv
2406.07548, section 4.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Array, Draw, Quantized
from maskdit.tokenizers.quantize.distance import entropies, mean_square, normalised, straight_through

MOST_BITS = 30
"""So many channels have ids in 32 bits."""


class LFQ(nn.Module):
    """The signs of the channels; nothing is trained.

    The first channel is an id's lowest bit.

    Attributes:
      channels: numbers per position, each a bit.
      commitment: weight of `|sg(code) - z|^2`.
      entropy: weight of the entropy loss; zero for none.
      diversity: factor of the entropy of the mean in it, which spreads the codes.
      entropy_temperature: codes have the probabilities `softmax(-|z - code|^2 / entropy_temperature)`.
      groups: the channels are cut into so many equal groups, whose entropies are added: exact with 1, cheap with one
        channel each; the mean's entropy over 2^18 codes needs them.

    Raises:
      ValueError: for more than 30 channels, and where the groups do not divide them.
    """

    channels: int = 10
    commitment: float = 0.25
    entropy: float = 0.1
    diversity: float = 1.0
    entropy_temperature: float = 0.01
    groups: int = 1

    def setup(self) -> None:
        """Checks the channels."""
        _check(self)

    @property
    def codes(self) -> int:
        """Size of the vocabulary."""
        return 2**self.channels

    def __call__(self, z: Array, *, draw: Draw | None = None, train: bool = False) -> Quantized:
        """Quantizes features.

        Args:
          z: `[B, ..., channels]`.
          draw, train: part of the contract; not used.

        Returns:
          `values` of -1 and 1, and `ids` `[B, ...]`; `losses`: `commitment` `[B]`, and the scalar `entropy` unless its
          weight is zero; `aux`: `z`.
        """
        z = z.astype(jnp.float32)
        signs = _signs(z)
        losses = {"commitment": self.commitment * mean_square(signs, z)}
        if self.entropy:
            # |z - code|^2 differs between codes by -2 z.code only
            losses["entropy"] = self.entropy * _entropy(self, 2 * z / self.entropy_temperature)
        return Quantized(values=straight_through(z, signs), ids=_ids(signs), losses=losses, aux={"z": z})

    def look_up(self, ids: Array) -> Array:
        """The codes of `ids` `[...]`: `[..., channels]`."""
        return _bits(ids, self.channels)

    def codebook(self) -> Array:
        """All codes in the order of their ids, `[codes, channels]`."""
        return self.look_up(jnp.arange(self.codes, dtype=jnp.int32))


class BSQ(nn.Module):
    """The signs of the channels of features on the unit sphere, on that sphere again; nothing is trained.

    The first channel is an id's lowest bit.

    Attributes:
      channels, commitment, entropy, diversity, groups: as in `LFQ`.
      entropy_temperature: codes have the probabilities `softmax(z.code / entropy_temperature)`.

    Raises:
      ValueError: as in `LFQ`.
    """

    channels: int = 18
    commitment: float = 0.0
    entropy: float = 0.1
    diversity: float = 1.0
    entropy_temperature: float = 0.01
    groups: int = 18

    def setup(self) -> None:
        """Checks the channels."""
        _check(self)

    @property
    def codes(self) -> int:
        """Size of the vocabulary."""
        return 2**self.channels

    def __call__(self, z: Array, *, draw: Draw | None = None, train: bool = False) -> Quantized:
        """Quantizes features.

        Args:
          z: `[B, ..., channels]`.
          draw, train: part of the contract; not used.

        Returns:
          `values` of length one, `channels ** -0.5` or its negative in each channel, and `ids` `[B, ...]`; `losses`:
          `commitment` `[B]`, and the scalar `entropy`, unless their weights are zero; `aux`: `z` of length one.
        """
        z = normalised(z)
        signs, size = _signs(z), self.channels**-0.5
        losses = {}
        if self.commitment:
            losses["commitment"] = self.commitment * mean_square(signs * size, z)
        if self.entropy:
            losses["entropy"] = self.entropy * _entropy(self, z * size / self.entropy_temperature)
        return Quantized(values=straight_through(z, signs * size), ids=_ids(signs), losses=losses, aux={"z": z})

    def look_up(self, ids: Array) -> Array:
        """The codes of `ids` `[...]`: `[..., channels]`."""
        return _bits(ids, self.channels) * self.channels**-0.5

    def codebook(self) -> Array:
        """All codes in the order of their ids, `[codes, channels]`."""
        return self.look_up(jnp.arange(self.codes, dtype=jnp.int32))


def _check(module: LFQ | BSQ) -> None:
    if not 1 <= module.channels <= MOST_BITS:
        raise ValueError(f"{type(module).__name__} has channels={module.channels}: take 1 to {MOST_BITS}")
    if module.groups < 1 or module.channels % module.groups:
        raise ValueError(
            f"{module.channels} channels do not divide into groups={module.groups}: choose a divisor of the channels"
        )


def _signs(z: Array) -> Array:
    return jnp.where(z > 0, 1.0, -1.0)  # also at zero, where a sign would be no code


def _ids(signs: Array) -> Array:
    return jnp.sum((signs > 0) * 2 ** jnp.arange(signs.shape[-1], dtype=jnp.int32), axis=-1).astype(jnp.int32)


def _bits(ids: Array, channels: int) -> Array:
    return jnp.where((ids[..., None] >> jnp.arange(channels, dtype=jnp.int32)) & 1, 1.0, -1.0)


def _entropy(module: LFQ | BSQ, scaled: Array) -> Array:
    """The entropy loss, a scalar; a code has the logit `scaled . signs`, so that channels are independent."""
    size = module.channels // module.groups
    signs = _bits(jnp.arange(2**size, dtype=jnp.int32), size)  # [2^g, g]
    flat = scaled.reshape(-1, module.groups, size)  # [N, G, g]
    logits = jnp.einsum("ngc,vc->gnv", flat, signs, precision=jax.lax.Precision.HIGHEST)
    terms = [entropies(logits[i]) for i in range(module.groups)]
    return sum((unsure - module.diversity * spread for unsure, spread in terms), jnp.zeros(()))

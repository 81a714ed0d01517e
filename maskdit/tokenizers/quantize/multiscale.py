"""Multi-scale residual quantization of next-scale models (VAR, Tian et al. 2024, arXiv 2404.02905, algorithms 1, 2).

A map is coded from coarse to fine: at each scale what is still missing is shrunk, coded, enlarged, passed through a
convolution and added. Ids of all scales lie in one row `[B, L]`, the coarsest first, each scale row by row.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Draw, Quantized
from maskdit.layers.conv import Conv
from maskdit.tokenizers.quantize.distance import (
    mean_square,
    normalised,
    squared_distances,
    straight_through,
    uniform_codes,
)

SHARPNESS = -0.75
"""The free coefficient of the cubic kernel, PyTorch's; `jax.image.resize` has -0.5 and other borders."""
_THIRDS = 4
"""With this many convolutions the published places are thirds, not halves, from the ends."""


class MultiScaleVQ(nn.Module):
    """Sums of codes over scales.

    Its parameters are `codebook` `[codes, channels]` and the convolutions `phi_0`, `phi_1`, ...

    Attributes:
      codes: size of the vocabulary, one for all scales.
      channels: numbers per position.
      scales: side of each scale, coarse to fine; the last is the side of the map (`v_patch_nums`).
      phis: number of convolutions that follow the enlarged codes (`share_quant_resi`); a scale takes that whose place
        is nearest.
      residual: the share of the convolution in `phi(h) = (1 - residual) h + residual conv(h)` (`quant_resi`); with
        zero there are none.
      commitment: weight of `|sg(sum) - f|^2`, the mean over scales (`beta`); that of `|sum - sg(f)|^2` is one.
      cosine: whether the code of largest cosine is taken, not that of least distance (`using_znorm`).
    """

    codes: int = 4096
    channels: int = 32
    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    phis: int = 4
    residual: float = 0.5
    commitment: float = 0.25
    cosine: bool = False

    def setup(self) -> None:
        """Makes the codebook and the convolutions."""
        if not self.scales or list(self.scales) != sorted(self.scales) or min(self.scales) < 1 or self.phis < 1:
            raise ValueError(
                f"MultiScaleVQ has scales={tuple(self.scales)} and phis={self.phis}: give growing sides, and at least "
                "one convolution"
            )
        self.raw = self.param("codebook", uniform_codes, (self.codes, self.channels), jnp.float32)
        self.convs = [Conv(self.channels, name=f"phi_{i}") for i in range(self.phis if self.residual else 0)]

    @property
    def tokens(self) -> int:
        """Ids of one image, of all scales together."""
        return sum(side**2 for side in self.scales)

    def codebook(self) -> Array:
        """The codes `[codes, channels]` as they are added up; with `cosine` they are normalised for the search only."""
        return jnp.asarray(self.raw, jnp.float32)

    def phi_index(self) -> tuple[int, ...]:
        """Which convolution each scale takes; in float64, where several scales lie between two places exactly."""
        margin = 1 / (3 if self.phis == _THIRDS else 2) / self.phis
        places, last = np.linspace(margin, 1 - margin, self.phis), max(len(self.scales) - 1, 1)
        return tuple(int(np.argmin(np.abs(places - k / last))) for k in range(len(self.scales)))

    def __call__(self, z: Array, *, draw: Draw | None = None, train: bool = False) -> Quantized:
        """Quantizes a map.

        Args:
          z: `[B, H, H, channels]`, H the last of `scales`.
          draw, train: part of the contract; not used.

        Returns:
          `values` `[B, H, H, channels]`, `ids` `[B, L]`; `losses`: `commitment` and `codebook` `[B]`; `aux`: `z`.

        Raises:
          ValueError: for a map of another side.
        """
        if z.shape[1:3] != (self.scales[-1],) * 2:
            raise ValueError(f"the last scale is {self.scales[-1]} positions a side, the map has {z.shape[1:3]}")
        z, held = z.astype(jnp.float32), jax.lax.stop_gradient
        if self.is_initializing():
            for conv in self.convs:
                conv(z)  # published weights have those that no scale takes, too
        target, total = held(z), jnp.zeros_like(z)
        zero = jnp.zeros(z.shape[0])
        ids, losses, share = [], {"commitment": zero, "codebook": zero}, 1 / len(self.scales)
        for k, side in enumerate(self.scales):
            ids.append(self._nearest(_shrink(target - held(total), side)))
            total = total + self._enlarged(ids[-1], k)
            losses["commitment"] += self.commitment * share * mean_square(held(total), z)
            losses["codebook"] += share * mean_square(total, target)
        return Quantized(
            values=straight_through(z, total), ids=jnp.concatenate(ids, axis=1), losses=losses, aux={"z": z}
        )

    def look_up(self, ids: Array) -> Array:
        """The sum over scales for ids `[B, L]`: `[B, H, H, channels]`."""
        return self.sums(ids)[-1]

    def sums(self, ids: Array) -> Array:
        """The sum after each scale for ids `[B, L]`: `[scales, B, H, H, channels]`."""
        total, out = self.start(ids.shape[0]), []
        for k, part in enumerate(self._split(ids)):
            total, _ = self.accumulate(total, part, k)
            out.append(total)
        return jnp.stack(out)

    def next_inputs(self, ids: Array) -> Array:
        """What a next-scale model is given in training: each scale but the first sees the sum of those before it,
        shrunk to its side. `[B, L]` to `[B, L - first, channels]`."""
        total, out = self.start(ids.shape[0]), []
        for k, part in enumerate(self._split(ids)[:-1]):
            total, following = self.accumulate(total, part, k)
            out.append(following)
        if not out:
            return jnp.zeros((ids.shape[0], 0, self.channels))
        return jnp.concatenate(out, axis=1)

    def start(self, batch: int) -> Array:
        """The sum before the first scale: zeros `[batch, H, H, channels]`."""
        return jnp.zeros((batch, self.scales[-1], self.scales[-1], self.channels))

    def accumulate(self, total: Array, ids: Array, scale: int) -> tuple[Array, Array]:
        """Adds one scale.

        Args:
          total: the sum so far, `[B, H, H, channels]`.
          ids: of the scale, `[B, side ** 2]`.
          scale: its number.

        Returns:
          The new sum, and the input of the next scale, `[B, next side ** 2, channels]`; after the last scale that is
          the sum itself, row by row.
        """
        total = total + self._enlarged(ids, scale)
        side = self.scales[min(scale + 1, len(self.scales) - 1)]
        return total, _shrink(total, side).reshape(total.shape[0], -1, self.channels)

    def _split(self, ids: Array) -> list[Array]:
        """The ids of each scale.

        Raises:
          ValueError: for another number of ids.
        """
        if ids.shape[1] != self.tokens:
            raise ValueError(f"scales {tuple(self.scales)} have {self.tokens} ids, not {ids.shape[1]}")
        return jnp.split(ids, np.cumsum([side**2 for side in self.scales])[:-1], axis=1)

    def _nearest(self, x: Array) -> Array:
        """The ids `[B, p * p]` of a map `[B, p, p, c]`."""
        flat, codes = x.reshape(-1, self.channels), jax.lax.stop_gradient(self.codebook())
        if self.cosine:
            cosines = jnp.matmul(normalised(flat), normalised(codes).T, precision=jax.lax.Precision.HIGHEST)
            ids = jnp.argmax(cosines, axis=1)
        else:
            ids = jnp.argmin(squared_distances(flat, codes), axis=1)
        return ids.astype(jnp.int32).reshape(x.shape[0], -1)

    def _enlarged(self, ids: Array, scale: int) -> Array:
        """What a scale adds: `[B, p * p]` to `[B, H, H, c]`."""
        side = math.isqrt(ids.shape[1])
        h = self.codebook()[ids].reshape(ids.shape[0], side, side, self.channels)
        h = _resize(h, _cubic(side, self.scales[-1])) if scale < len(self.scales) - 1 else h
        if not self.residual:
            return h
        return (1 - self.residual) * h + self.residual * self.convs[self.phi_index()[scale]](h)


def _resize(x: Array, weights: np.ndarray) -> Array:
    """Maps `[B, n, n, c]` resized along both sides by `weights` `[m, n]`: `[B, m, m, c]`."""
    w = jnp.asarray(weights, jnp.float32)
    return jnp.einsum("ih,jw,bhwc->bijc", w, w, x, precision=jax.lax.Precision.HIGHEST)


def _shrink(x: Array, side: int) -> Array:
    """A map `[B, H, H, c]` averaged over areas: `[B, side, side, c]`."""
    return x if x.shape[1] == side else _resize(x, _area(x.shape[1], side))


def _area(old: int, new: int) -> np.ndarray:
    """Averages over areas `[new, old]`: cell i has the inputs from floor(i old / new) to ceil((i + 1) old / new)."""
    weights = np.zeros((new, old))
    for i in range(new):
        first, end = i * old // new, -(-(i + 1) * old // new)
        weights[i, first:end] = 1 / (end - first)
    return weights


def _cubic(old: int, new: int) -> np.ndarray:
    """Bicubic interpolation `[new, old]`, places beyond the border being those at it (Keys 1981)."""
    weights, a = np.zeros((new, old)), SHARPNESS
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            far = abs(place - tap)
            if far <= 1:
                weight = ((a + 2) * far - (a + 3)) * far**2 + 1
            else:
                weight = ((far - 5) * far + 8) * a * far - 4 * a
            weights[i, min(max(tap, 0), old - 1)] += weight
    return weights

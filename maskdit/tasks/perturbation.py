"""Codes swapped for near ones between quantizer and decoder (RobustTok, Qiu et al. 2025, arXiv 2503.08354).

A decoder that is trained so bears the errors of a generator; pFID is the Frechet distance of reconstructions from
latents that were swapped so.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Array, Draw, Latents
from maskdit.tokenizers.grid import codes_per_position
from maskdit.tokenizers.quantize.distance import squared_distances, straight_through

FIRST, RANDOM = "first", "random"


@dataclasses.dataclass(frozen=True)
class LatentPerturbation:
    """Swaps codes in a share of the batch, less as training goes on.

    `anneal_start`, `anneal_end` and the progress given to `ratio` are in one unit: here a fraction of the run
    (published: epochs 40 and 120 of 200).

    Attributes:
      alpha: probability that a position draws a code anew.
      beta: share of the batch's images that are perturbed.
      delta: number of nearest codes that it is drawn from, the nearest included.
      anneal_start, anneal_end: progress between which `alpha` and `delta` fall; where they are equal, both fall there
        at once.
      end_ratio: factor of both after `anneal_end`. Between, it falls from 1 to `1 - end_ratio` as published, so that
        only 0.5 has no jump.
      rows: `random`, each image with probability `beta`, however a batch is cut into microbatches; or `first`, the
        first `int(B * beta)` of a microbatch as published, which are none where it has fewer than `1 / beta` images.

    Raises:
      ValueError: for values outside of their ranges.
    """

    alpha: float = 1.0
    beta: float = 0.1
    delta: int = 100
    anneal_start: float = 0.2
    anneal_end: float = 0.6
    end_ratio: float = 0.5
    rows: str = RANDOM

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "end_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"LatentPerturbation has {name}={getattr(self, name)}: give a share from 0 to 1")
        if self.delta < 1:
            raise ValueError(f"LatentPerturbation has delta={self.delta}: give the number of near codes, at least 1")
        if self.anneal_start > self.anneal_end:
            raise ValueError(
                f"LatentPerturbation anneals from {self.anneal_start} to {self.anneal_end}: the end cannot lie before "
                "the start"
            )
        if self.rows not in (FIRST, RANDOM):
            raise ValueError(f"LatentPerturbation has rows='{self.rows}': use '{FIRST}' or '{RANDOM}'")

    def check(self, tokenizer: Any) -> None:
        """Refuses tokenizers whose codes cannot be swapped: see `check_codes`."""
        check_codes(tokenizer, self.delta)

    def ratio(self, progress: Array | float) -> Array:
        """The factor of `alpha` and `delta` at a progress in the unit of `anneal_start`; it may be traced."""
        progress = jnp.asarray(progress, jnp.float32)
        length = self.anneal_end - self.anneal_start
        if not length:
            return jnp.where(progress < self.anneal_start, 1.0, self.end_ratio)
        way = (progress - self.anneal_start) / length
        between = jnp.where(progress < self.anneal_start, 1.0, 1 - way * self.end_ratio)
        return jnp.where(progress > self.anneal_end, self.end_ratio, between)

    def apply(self, latents: Latents, codebook: Array, draw: Draw, ratio: Array | float = 1.0) -> Latents:
        """The latents with the values that a decoder is trained on; ids and losses stay those of the quantizer.

        Args:
          latents: of a discrete tokenizer, with `values` and `aux["z"]`, both `[B, ..., c]`.
          codebook: the codes `[V, c]` as `z` was compared with them.
          draw: of the batch. Draws: `swap` (uniform `[B, positions]`: a position draws anew where it is at most
            `alpha`), `neighbour` (uniform `[B, positions]`: which of the near codes, times `delta`, rounded down), and
            with random rows `row` (uniform `[B]`).
          ratio: factor of `alpha` and `delta`; it may be traced. At least one near code is left.

        Raises:
          ValueError: for latents without values or not of one code at each position, and where `delta` is more than
            there are codes.
        """
        z, values = _compared(latents, codebook), latents.values
        if values is None:
            raise ValueError("these latents have ids only: perturb those that encode gives, with values and z")
        near = neighbours(z, codebook, self.delta)  # [B, P, delta]
        count = jnp.maximum(jnp.floor(ratio * self.delta + 1e-4), 1.0)  # 1e-4: the product may fall short of a whole
        ids = redrawn(near, draw, ratio * self.alpha, count)
        swapped = straight_through(z, jnp.asarray(codebook)[ids].reshape(z.shape))
        if self.rows == FIRST:
            chosen = jnp.arange(z.shape[0]) < int(z.shape[0] * self.beta)
        else:
            chosen = draw.uniform("row", z.shape[:1]) < self.beta
        chosen = chosen.reshape(-1, *(1,) * (z.ndim - 1))
        return dataclasses.replace(latents, values=jnp.where(chosen, swapped, values))


def swapped(latents: Latents, codebook: Array, draw: Draw, alpha: float, delta: int) -> Latents:
    """The latents with codes of all images swapped, for pFID: values and ids.

    Args:
      latents, codebook, draw: as in `LatentPerturbation.apply`, without `row`.
      alpha: probability that a position draws a code anew; it changes with `alpha * (1 - 1 / delta)`.
      delta: number of nearest codes that it is drawn from.

    Raises:
      ValueError: as `LatentPerturbation.apply`.
    """
    z = _compared(latents, codebook)
    ids = redrawn(neighbours(z, codebook, delta), draw, alpha, float(delta))  # [B, P]
    return dataclasses.replace(latents, values=jnp.asarray(codebook)[ids].reshape(z.shape), ids=ids)


def check_codes(tokenizer: Any, delta: int) -> None:
    """Refuses tokenizers whose codes cannot be swapped for one of `delta` near ones, before anything is made.

    Raises:
      ValueError: for a tokenizer without token ids or codes, with other than one code at each position, and with fewer
        than `delta` codes.
    """
    name, spec = type(tokenizer).__name__, tokenizer.latent
    if spec.vocabulary is None or not hasattr(tokenizer, "codebook"):
        raise ValueError(
            f"{name} has no token ids, so there are no codes to swap for near ones: leave the swaps out, or give a "
            "tokenizer with a quantizer such as VQ"
        )
    if spec.layout == "pyramid" or codes_per_position(tokenizer) > 1:
        raise ValueError(
            f"{name} has the quantizer {type(tokenizer.quantize).__name__}, which adds up several codes for a "
            "position: swaps are of one code at each position, so leave them out, or give another quantizer"
        )
    if delta > spec.vocabulary:
        raise ValueError(f"delta={delta} nearest codes are wanted of {spec.vocabulary}: lower delta")


def _compared(latents: Latents, codebook: Array) -> Array:
    """What the codes were compared with, `[B, ..., c]`, of latents whose values are one code at each position."""
    z = latents.aux.get("z")
    if z is None:
        raise ValueError("these latents have no z, which a quantizer was given: codes of quantized latents are swapped")
    positions = math.prod(z.shape[:-1])
    if codebook.ndim != 2 or codebook.shape[1] != z.shape[-1]:
        raise ValueError(
            f"codes are swapped in one codebook [V, {z.shape[-1]}], got {list(codebook.shape)}: leave the swaps out "
            "for this quantizer"
        )
    if latents.ids is not None and latents.ids.size != positions:
        raise ValueError(
            f"codes are swapped where a position has one, got {latents.ids.size} ids for {positions} positions: leave "
            "the swaps out for this quantizer"
        )
    return z


def neighbours(z: Array, codebook: Array, count: int) -> Array:
    """The ids of the `count` nearest codes `[V, c]` of each position of `z` `[B, ..., c]`, nearest first:
    `[B, positions, count]`.

    Raises:
      ValueError: for more than there are codes.
    """
    if count > codebook.shape[0]:
        raise ValueError(f"delta={count} nearest codes are wanted of {codebook.shape[0]}: lower delta")
    flat, codebook = jax.lax.stop_gradient((z.reshape(-1, z.shape[-1]), codebook))
    _, ids = jax.lax.top_k(-squared_distances(flat, codebook), count)
    return ids.astype(jnp.int32).reshape(z.shape[0], -1, count)


def redrawn(near: Array, draw: Draw, alpha: Array | float, delta: Array | float) -> Array:
    """One of the nearest codes for each position, `[B, P]`.

    Args:
      near: ids `[B, P, count]`, nearest first.
      draw: as in `LatentPerturbation.apply`.
      alpha: probability of drawing anew; else it is the nearest.
      delta: how many of the codes are drawn from, a whole number up to `count`; it may be traced.
    """
    shape = near.shape[:2]
    anew = draw.uniform("swap", shape) <= alpha
    place = jnp.minimum(jnp.floor(draw.uniform("neighbour", shape) * delta), delta - 1).astype(jnp.int32)
    return jnp.take_along_axis(near, jnp.where(anew, place, 0)[..., None], axis=-1)[..., 0]

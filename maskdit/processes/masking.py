"""Masking patches in training: how many, which, and the loss of a masked example (MaskDiT, arXiv 2306.09305)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from maskdit.contracts import Draw, Layout
from maskdit.layers.patch import patchify


def mask_ratio(kind: str, progress: float, ratio: float, minimum: float = 0.0) -> float:
    """Share of masked patches at a progress in [0, 1].

    Args:
      kind: `constant`; `linear` (rises from `minimum` to `ratio`); `exp` (falls as e^(-7x)); `cosine2`, `cosine3`, ...
        (falls as cos(pi x / 2)^k).
      progress: how much of the schedule is over.
      ratio, minimum: the schedule's largest and least value; `constant` has no least value.

    Raises:
      ValueError: for an unknown kind.
    """
    span = ratio - minimum
    if kind == "constant":
        return ratio
    if kind == "linear":
        return span * progress + minimum
    if kind == "exp":
        return span * math.exp(-7.0 * progress) + minimum
    if kind.startswith("cosine") and kind[6:].isdigit():
        return span * math.cos(math.pi * progress / 2) ** int(kind[6:]) + minimum
    raise ValueError(f"mask schedule '{kind}' is none of constant, linear, exp, cosine2, cosine3, ...")


@dataclasses.dataclass(frozen=True)
class MaskSchedule:
    """How many patches the network sees in the course of training.

    Each distinct number of kept tokens is a program of its own, so ratios that change are rounded to multiples of
    `granularity`.

    Attributes:
      kind, ratio, minimum: see `mask_ratio`.
      unmasked_from: progress from which nothing is masked, the fine-tuning phase; None for never.
      granularity: ratios of a changing schedule are rounded to its multiples.
    """

    kind: str = "constant"
    ratio: float = 0.5
    minimum: float = 0.0
    unmasked_from: float | None = None
    granularity: float = 0.125

    def __post_init__(self) -> None:
        mask_ratio(self.kind, 0.0, self.ratio, self.minimum)
        if not (0 <= self.ratio < 1 and 0 <= self.minimum < 1):
            raise ValueError(f"mask ratios lie in [0, 1), got ratio {self.ratio} and minimum {self.minimum}")
        if self.granularity <= 0:
            raise ValueError(f"granularity must be positive, got {self.granularity}")

    def kept(self, tokens: int, progress: float) -> int | None:
        """Number of tokens kept at a progress, which stays 1 past the horizon; None where all are."""
        progress = min(progress, 1.0)
        if self.unmasked_from is not None and progress >= self.unmasked_from:
            return None
        ratio = mask_ratio(self.kind, progress, self.ratio, self.minimum)
        if self.kind != "constant":
            ratio = round(ratio / self.granularity) * self.granularity
        keep = max(int(tokens * (1 - ratio)), 1)
        return None if keep >= tokens else keep


def draw_kept(draw: Draw, rows: int, tokens: int, keep: int) -> jax.Array:
    """Indices of the tokens to keep, `[rows, keep]`: those with the least uniform numbers, in that order.

    Draws: `mask` (uniform, `[rows, tokens]`).
    """
    return jnp.argsort(draw.uniform("mask", (rows, tokens)), axis=1)[:, :keep]


def mean_where(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Mean of `values` `[B, N]` over the tokens where `chosen` `[B, N]` is 1, for each example: `[B]`."""
    return (values * chosen).sum(1) / jnp.maximum(chosen.sum(1), 1)


def reconstruction(x0: jax.Array, xt: jax.Array, mask: jax.Array, layout: Layout) -> jax.Array:
    """MaskDiT's reconstruction term of each example, `[B]`.

    The denoised patches at masked places are held against the noisy input there, normalised within each patch (mean,
    and variance with divisor n - 1). Without a weight for the noise level.

    Args:
      x0: denoised estimate `[B, H, W, C]`.
      xt: noisy input `[B, H, W, C]`.
      mask: 1 where a token was masked, `[B, N]`.
      layout: the network's tokens.
    """
    target = patchify(xt, layout.patch)
    mean = target.mean(-1, keepdims=True)
    target = (target - mean) / jnp.sqrt(target.var(-1, keepdims=True, ddof=1) + 1e-6)
    return mean_where(jnp.square(patchify(x0, layout.patch) - target).mean(-1), mask)

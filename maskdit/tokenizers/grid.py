"""What tokenizers with codes on a grid of positions share: ids to maps and back."""

import math
from typing import Any

from maskdit.contracts import Array, Latents, Quantized


def codes_per_position(tokenizer: Any) -> int:
    """How many ids a discrete tokenizer has for each position: the levels of a residual quantizer, else one."""
    return getattr(getattr(tokenizer, "quantize", None), "codes_per_position", 1)


def grid_latents(quantized: Quantized) -> Latents:
    """The latents that a quantizer's result makes: values `[B, h, w, c]`, ids `[B, K]` row by row."""
    ids = quantized.ids
    return Latents(
        values=quantized.values,
        ids=ids.reshape(ids.shape[0], -1),
        aux=quantized.aux,
        losses=quantized.losses,
    )


def grid_values(latents: Latents, quantize: Any) -> Array:
    """What the decoder takes: the latents' values, or those that the quantizer has for their ids.

    Args:
      latents: with `values` `[B, h, w, c]`, or `ids`: `[B, h, w]`, of several codes per position `[B, h, w, codes]`, or
        `[B, K]` of a square grid.
      quantize: the bound quantizer.

    Raises:
      ValueError: for latents with neither, and for ids that fill no grid.
    """
    if latents.values is not None:
        return latents.values
    if latents.ids is None:
        raise ValueError("these latents have neither values nor ids: give those of encode, or ids [B, h, w]")
    ids = latents.ids
    values = quantize.look_up(ids.reshape(ids.shape[0], -1))  # [B, positions, c]
    positions = values.shape[1]
    rows, columns = ids.shape[1:3] if ids.ndim > 2 else (math.isqrt(positions),) * 2
    if rows * columns != positions:
        raise ValueError(
            f"ids of shape {tuple(ids.shape)} are of {positions} positions, which fill no grid of {rows} x {columns}: "
            "give ids [B, rows, columns], with another axis where positions have several codes, or values"
        )
    return values.reshape(ids.shape[0], rows, columns, -1)  # [B, h, w, c]

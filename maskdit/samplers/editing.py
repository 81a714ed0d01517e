"""Inpainting and outpainting: what of an image stays, in the tokens or latents that a generator works on."""

import math
from typing import Any

import numpy as np

from maskdit.contracts import LatentSpec, Layout, ModelError
from maskdit.samplers.sampling import Known


def check_edit(side: int, latent: LatentSpec, images: np.ndarray, mask: np.ndarray) -> None:
    """Refuses what cannot be edited.

    Args:
      side: of the square images that the generator makes; see `side_of`.
      latent: of the generator's tokenizer.
      images: `[B, H, W, 3]`.
      mask: bool `[H, W]`, true where the image is made anew.

    Raises:
      ModelError: for a tokenizer without a grid, an image of another size than the generator makes, a mask of another
        size than the image, and one that leaves everything as it is.
    """
    if latent.layout != "grid":
        raise ModelError(
            f"this model's tokenizer makes a {latent.layout} of {latent.tokens} tokens, each of which tells of the "
            "whole image: no part of it can be held fixed. Edit with a model whose tokenizer has a grid"
        )
    if images.shape[1:] != (side, side, 3):
        raise ModelError(
            f"this model makes images of {side} x {side} pixels in three colours, and the one to edit is "
            f"{list(images.shape[1:])} (height, width, colours): resize it"
        )
    if mask.shape != images.shape[1:3]:
        raise ModelError(
            f"the mask is {list(mask.shape)} and the image {list(images.shape[1:3])} (height, width): give a mask of "
            "the image's size"
        )
    if not mask.any():
        raise ModelError("the mask is black everywhere: paint white what is to be made anew")


def side_of(layout: Layout, latent: LatentSpec, each: int = 1) -> int:
    """Side of the square images that a generator on a grid makes, in pixels.

    Args:
      layout: the network's tokens.
      latent: of the tokenizer.
      each: codes of one position.
    """
    if layout.vocabulary is not None:
        return math.isqrt(layout.tokens // each) * latent.downsample
    return layout.shape[0] * latent.downsample


def known_region(encoded: Any, mask: np.ndarray, layout: Layout, latent: LatentSpec) -> Known:
    """The latents or ids that stay: those whose pixels are all to be kept.

    Args:
      encoded: the image's latents `[B, h, w, c]`, or ids `[B, K]`.
      mask: bool `[H, W]`, true where the image is made anew.
      layout: the network's tokens.
      latent: of the tokenizer.

    Returns:
      What to keep, with a mask of a row for each image.
    """
    step, (height, width) = latent.downsample, mask.shape
    cells: Any = mask.reshape(height // step, step, width // step, step).any((1, 3))  # [h, w]
    stays: Any = ~cells[None]
    if layout.vocabulary is not None:
        each = encoded.shape[1] // cells.size  # codes of one position, side by side
        stays = np.repeat(stays.reshape(1, -1), each, axis=1)  # [1, K]
    else:
        stays = stays[..., None]  # [1, h, w, 1]
    return Known(x=encoded, mask=np.repeat(stays, len(encoded), axis=0))  # type: ignore[arg-type]  # on the host


def composed(made: np.ndarray, images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Images made, with the pixels of the originals where the mask keeps them.

    Args:
      made: uint8 `[B, ..., H, W, 3]`.
      images: the originals, uint8 `[B, H, W, 3]`.
      mask: bool `[H, W]`, true where the image is made anew.
    """
    originals = images.reshape(len(images), *(1,) * (made.ndim - 4), *images.shape[1:])
    return np.where(mask[..., None], made, originals)

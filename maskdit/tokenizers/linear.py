"""Patches on their leading principal components: the smallest honest latent space, fitted in seconds."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array, Cond, Draw, Latents, LatentSpec
from maskdit.layers.patch import patchify, unpatchify


class LinearPatches(nn.Module):
    """Principal components of image patches.

    Every p x p x 3 patch becomes the coefficients of its leading components, each divided by a power of its standard
    deviation in the data the basis was fitted to.

    Attributes:
      patch: side of a patch in pixels.
      channels: components kept.
      std: standard deviation of the latents as a whole.
      whiten: 0 keeps the components' relative sizes, 1 gives each the same variance.
    """

    patch: int = 8
    channels: int = 24
    std: float = 0.5
    whiten: float = 1.0

    def setup(self) -> None:
        """Makes the parameters."""
        size = self.patch**2 * 3
        self.mean = self.param("mean", nn.initializers.zeros, (size,))
        self.basis = self.param("basis", nn.initializers.orthogonal(), (size, self.channels))
        self.factor = self.param("factor", nn.initializers.ones, (self.channels,))

    @property
    def latent(self) -> LatentSpec:
        """One position per patch."""
        return LatentSpec(layout="grid", downsample=self.patch, channels=self.channels)

    def encode(
        self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Latents:
        """Images `[B, H, W, 3]` in [-1, 1] to latents `[B, H/p, W/p, c]`."""
        b, h, w, _ = images.shape
        cut = patchify(images, self.patch)  # [B, N, p*p*3]
        z = (cut - self.mean) @ self.basis * self.factor
        return Latents(values=z.reshape(b, h // self.patch, w // self.patch, self.channels))

    def decode(
        self, latents: Latents, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Array:
        """Latents `[B, h, w, c]` to images `[B, h*p, w*p, 3]`."""
        values = latents.values
        assert values is not None
        b, h, w, c = values.shape
        cut = (values.reshape(b, h * w, c) / self.factor) @ self.basis.T + self.mean  # [B, N, p*p*3]
        return unpatchify(cut, (h, w), self.patch)

    def __call__(self, images: Array) -> Array:
        """Encodes and decodes."""
        return self.decode(self.encode(images))

    def fit(self, batches: Iterable[np.ndarray]) -> dict[str, Any]:
        """Variables whose basis spans the leading principal components of the patches of images.

        Plain float64 sums in the order given, so the same images give the same bytes on any number of processes.

        Args:
          batches: uint8 images `[B, H, W, 3]`.

        Raises:
          ValueError: where there are no images, or a patch has fewer numbers than `channels`.
        """
        size, p = self.patch**2 * 3, self.patch
        if self.channels > size:
            raise ValueError(f"a {p} x {p} patch has {size} numbers, fewer than channels={self.channels}")
        count, total, outer = 0, np.zeros(size), np.zeros((size, size))
        for images in batches:
            cut = np.asarray(patchify(jnp.asarray(images), p)).reshape(-1, size).astype(np.float64) / 127.5 - 1
            count, total, outer = count + len(cut), total + cut.sum(0), outer + cut.T @ cut
        if count == 0:
            raise ValueError("there are no images to fit the linear tokenizer to")
        mean = total / count
        variance, vectors = np.linalg.eigh(outer / count - np.outer(mean, mean))
        kept = np.argsort(variance)[::-1][: self.channels]
        basis, deviation = vectors[:, kept], np.sqrt(np.maximum(variance[kept], 1e-12))
        basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(self.channels)])
        scaled = deviation ** (1 - self.whiten)
        factor = deviation**-self.whiten * self.std / np.sqrt(np.mean(scaled**2))
        fitted = {"mean": mean, "basis": basis, "factor": factor}
        return {"params": {name: jnp.asarray(value, jnp.float32) for name, value in fitted.items()}}

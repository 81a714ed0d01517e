"""Codes of another tokenizer as targets: the first stage of TiTok (Yu et al. 2024, arXiv 2406.07550, section 3.3).

A decoder that has only to predict which code a good, frozen tokenizer has at each place learns without adversarial and
perceptual losses; that tokenizer's decoder makes the image.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maskdit.contracts import Array, PyTree, example_image
from maskdit.tokenizers.quantize.ema import EMAVQ


@dataclasses.dataclass(frozen=True)
class ProxyCodes:
    """Targets from a frozen tokenizer.

    Attributes:
      tokenizer: one with codes on a grid, as a reference, `pretrained(SOURCE, ...)`; it gets no gradient.
      weight: factor of the cross entropy.

    Raises:
      ValueError: for a tokenizer without codes on a grid, and for codes that are averages: `completed` hands on
        parameters.
    """

    tokenizer: Any
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.tokenizer is None:  # a reference whose spec is filled in when a run starts
            return
        latent = self.tokenizer.latent
        if latent.layout != "grid" or latent.vocabulary is None:
            found = "values" if latent.vocabulary is None else "ids"
            raise ValueError(
                f"proxy codes are ids on a grid, this tokenizer has {found} in a {latent.layout}: use a VQGAN"
            )
        if isinstance(getattr(self.tokenizer, "quantize", None), EMAVQ):
            raise ValueError("proxy codes need a codebook among the parameters, this one is of averages: use VQ")

    def ids(self, variables: PyTree, images: Array) -> Array:
        """The codes of images `[B, H, W, 3]` in [-1, 1]: `[B, g, g]`, int32.

        Args:
          variables: of the frozen tokenizer, by collection.
          images: of a size that its grid goes into.
        """
        ids = self.tokenizer.apply(variables, images, method="encode").ids  # [B, g * g]
        step = self.tokenizer.latent.downsample
        return jax.lax.stop_gradient(ids.reshape(-1, images.shape[1] // step, images.shape[2] // step))

    def completed(self, tokenizer: Any, params: PyTree, variables: PyTree) -> tuple[Any, PyTree]:
        """A trained first-stage TiTok together with the frozen tokenizer's codes and decoder, which make its images.

        Args:
          tokenizer: a `TiTok` without `pixel`.
          params: its parameters.
          variables: of the frozen tokenizer, by collection.

        Returns:
          The tokenizer with `pixel`, and its parameters: those of the decoding side of the frozen one under `pixel`.
        """
        whole = tokenizer.clone(pixel=self.tokenizer)
        needed = jax.eval_shape(whole.init, jax.random.key(0), example_image(whole))["params"]["pixel"]
        pixel = {name: part for name, part in variables["params"].items() if name in needed}
        return whole, {**params, "pixel": pixel}


def proxy_cross_entropy(logits: Array, ids: Array) -> Array:
    """Cross entropy in nats, mean over the places of each example.

    Args:
      logits: `[B, g, g, K]`.
      ids: codes `[B, g, g]` in [0, K).

    Returns:
      `[B]`, float32.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(log_p, ids[..., None], axis=-1, mode="clip")[..., 0]  # [B, g, g]
    return -chosen.mean(axis=(1, 2))

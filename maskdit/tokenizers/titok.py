"""TiTok: an image as a short sequence of tokens (Yu et al. 2024, arXiv 2406.07550), and TA-TiTok, whose decoder reads a
text besides (Kim et al. 2025, arXiv 2501.07730).

The first version (`legacy`) learns in two stages: its decoder predicts the codes of another, convolutional tokenizer at
each place (stage 1, `pixel` is None), then the expected code goes through that tokenizer's decoder (stage 2).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Latents, LatentSpec
from maskdit.tokenizers.latent_vit import LatentDecoder, LatentEncoder
from maskdit.tokenizers.posterior import normal_posterior

Size = tuple[int, int, int]

SIZES: dict[str, Size] = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, depth and heads of the published sizes; `TiTok-BL-64` has a base encoder, a large decoder and 64 tokens."""


class TiTok(nn.Module):
    """Images to a sequence of tokens and back.

    The network works on images in [0, 1]; `encode` and `decode` take and give [-1, 1] as all tokenizers.

    Attributes:
      quantize: the quantizer, of as many `channels`; None for the bottleneck of a KL autoencoder.
      size: side of the square images in pixels.
      patch: side of the encoder's patches in pixels.
      decoder_patch: side of the decoder's; None for `patch`.
      tokens: length of the sequence.
      channels: numbers per token.
      encoder, decoder: width, depth and heads of the two transformers, see `SIZES`.
      legacy: the first version: see the module, and `maskdit.tokenizers.latent_vit.mix` for its other difference.
      proxy_codes: of a legacy one: vocabulary of the convolutional tokenizer.
      pixel: of a legacy one in stage 2: that tokenizer, such as `MaskGITVQGAN`, for its codes and decoder; else None.
      text: for a decoder that reads text: tokens and numbers per token of its embeddings; None for none.
      scale, shift: of the KL bottleneck: a generator sees `(z - shift) * scale`.
      sample: of the KL bottleneck: whether `encode` draws from the posterior when it is given a draw.
      scan, remat: how blocks run, see `maskdit.layers.stack.run_stack`.
      dtype: precision of tokens and products; norms, softmax, codes and the posterior are float32.

    Raises:
      ValueError: for fields that do not go together.
    """

    quantize: Any = None
    size: int = 256
    patch: int = 16
    decoder_patch: int | None = None
    tokens: int = 32
    channels: int = 12
    encoder: Size = SIZES["base"]
    decoder: Size = SIZES["base"]
    legacy: bool = False
    proxy_codes: int = 1024
    pixel: Any = None
    text: tuple[int, int] | None = None
    scale: float = 1.0
    shift: float = 0.0
    sample: bool = True
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        self._check()
        run: dict[str, Any] = {"scan": self.scan, "remat": self.remat, "dtype": self.dtype}
        patch = self.decoder_patch or self.patch
        self._encoder = LatentEncoder(
            *self.encoder,
            patch=self.patch,
            features=self.channels * (1 if self.quantize is not None else 2),
            mixed=self.legacy,
            **run,
            name="encoder",
        )
        self._decoder = LatentDecoder(
            *self.decoder,
            grid=self.size // patch,
            patch=patch,
            codes=self.proxy_codes if self.legacy else None,
            text=self.text,
            **run,
            name="decoder",
        )
        width = self.encoder[0]
        init = nn.initializers.normal(width**-0.5)
        self.latent_tokens = self.param("latent_tokens", init, (self.tokens, width), jnp.float32)

    def _check(self) -> None:
        for patch in (self.patch, self.decoder_patch or self.patch):
            if self.size % patch:
                raise ValueError(f"size={self.size} does not divide into patches of side {patch}: change one of them")
        if self.quantize is not None and self.quantize.channels != self.channels:
            raise ValueError(
                f"the quantizer has {self.quantize.channels} channels, the tokens {self.channels}: no layer stands "
                "between them, so set quantize.channels to channels"
            )
        if self.quantize is not None and (self.scale, self.shift) != (1.0, 0.0):
            raise ValueError("scale and shift are of the KL bottleneck: leave them out with a quantizer")
        if self.pixel is None:
            return
        if not self.legacy:
            raise ValueError("pixel belongs to the first version: set legacy=True, or leave it out")
        if self.pixel.latent.vocabulary != self.proxy_codes:
            raise ValueError(
                f"pixel has {self.pixel.latent.vocabulary} codes, the decoder's logits are of "
                f"proxy_codes={self.proxy_codes}: make them equal"
            )

    @property
    def latent(self) -> LatentSpec:
        """The latents: a sequence."""
        return LatentSpec(
            layout="sequence",
            downsample=self.patch,
            channels=self.channels,
            scale=self.scale,
            shift=self.shift,
            vocabulary=None if self.quantize is None else self.quantize.codes,
            tokens=self.tokens,
            size=self.size,
        )

    @property
    def last_layer(self) -> str:
        """Path of the decoder's last kernel."""
        if self.pixel is not None:
            return f"pixel/{self.pixel.last_layer}"
        return "decoder/ffn_out/kernel" if self.legacy else "decoder/conv_out/kernel"

    @property
    def encoder_last_layer(self) -> str:
        """Path of the encoder's last kernel."""
        return "encoder/conv_out/kernel"

    def __call__(self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None) -> Array:
        """Encodes and decodes: `[B, H, W, 3]` to the same shape; in stage 1 to `logits`."""
        latents = self.encode(images, cond, draw=draw)
        if self.legacy and self.pixel is None:
            return self.logits(latents, cond)
        return self.decode(latents, cond, draw=draw)

    def features(self, images: Array) -> Array:
        """What the encoder makes of images `[B, size, size, 3]`, before the bottleneck: `[B, tokens, channels]`, or
        twice the channels, the moments of a posterior.

        Raises:
          ValueError: for images of another size.
        """
        if images.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"this tokenizer takes images [B, {self.size}, {self.size}, 3], got {list(images.shape)}: resize them"
            )
        return self._encoder((images + 1.0) / 2.0, self.latent_tokens)

    def encode(
        self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Latents:
        """Encodes images.

        Args:
          images: `[B, size, size, 3]` in [-1, 1].
          cond: part of the contract; the encoder reads no text.
          draw: for the quantizer; with a KL bottleneck, where given and `sample` is set, latents are drawn from the
            posterior. Draws: `posterior` (normal).
          train: for the quantizer.

        Returns:
          Latents with `values` `[B, tokens, channels]`. Of a quantizer: `ids` `[B, tokens]`, its losses and aux. Of
          the KL bottleneck: aux `moments` `[B, tokens, 2 * channels]` and `kl` `[B]` in nats.

        Raises:
          ValueError: for images of another size.
        """
        z = self.features(images)
        if self.quantize is None:
            return self.posterior(z, draw=draw)
        found = self.quantize(z, draw=draw, train=train)
        return Latents(values=found.values, ids=found.ids, aux=found.aux, losses=found.losses)

    def posterior(self, moments: Array, *, draw: Draw | None = None) -> Latents:
        """The latents of a KL bottleneck that belong to `moments`, as `encode` returns them.

        Raises:
          ValueError: where there is a quantizer instead.
        """
        if self.quantize is not None:
            raise ValueError("this tokenizer has a quantizer and no posterior: its latents come from encode, or ids")
        return normal_posterior(moments, draw if self.sample else None, scale=self.scale, shift=self.shift)

    def codebook(self) -> Array:
        """The codes `[V, channels]`, as they are compared with features.

        Raises:
          ValueError: without a quantizer.
        """
        if self.quantize is None:
            raise ValueError("this tokenizer has a KL bottleneck and no codes: set quantize")
        return self.quantize.codebook()

    def decode(
        self, latents: Latents, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Array:
        """Decodes latents to images.

        Args:
          latents: `values` `[B, tokens, channels]`, or `ids` `[B, tokens]`.
          cond: with `text` `[B, T, D]` where the decoder reads text.
          draw, train: part of the contract; not used.

        Returns:
          Images `[B, size, size, 3]`, float32, about [-1, 1]: not clamped.

        Raises:
          ValueError: in stage 1, which makes no images; for latents with neither values nor ids; for a missing text,
            one of another shape, and one that no decoder reads.
        """
        if not self.legacy:
            return self._decoded(latents, cond) * 2.0 - 1.0
        if self.pixel is None:
            raise ValueError(
                "this TiTok predicts proxy codes (stage 1) and has no decoder of pixels: call logits, or set pixel to "
                "the tokenizer whose codes they are"
            )
        return self.pixel.decode(Latents(values=self.expected_code(self.logits(latents, cond))))

    def logits(self, latents: Latents, cond: Cond | None = None) -> Array:
        """Of a legacy one: logits of the proxy codes at each place, `[B, g, g, proxy_codes]`; arguments as `decode`.

        Raises:
          ValueError: where the decoder makes pixels, and as `decode`.
        """
        if not self.legacy:
            raise ValueError("this TiTok decodes to pixels: proxy codes are predicted with legacy=True")
        return self._decoded(latents, cond)

    def expected_code(self, logits: Array) -> Array:
        """The mean of the proxy codes under the logits `[B, g, g, proxy_codes]`: `[B, g, g, c]`, which `pixel` decodes.

        Gradients reach the logits, as they would not through the most likely code.
        """
        weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        return jnp.matmul(weights, self.pixel.codebook(), precision=jax.lax.Precision.HIGHEST)

    def _decoded(self, latents: Latents, cond: Cond | None) -> Array:
        z = self._values(latents)
        return self._decoder(z, self._text(cond, len(z)))

    def _values(self, latents: Latents) -> Array:
        if latents.values is not None:
            return latents.values / self.scale + self.shift
        if latents.ids is None or self.quantize is None:
            found = "neither values nor ids" if latents.ids is None else "ids only, and this tokenizer has no codes"
            raise ValueError(f"these latents have {found}: give those of encode")
        return self.quantize.look_up(latents.ids)

    def _text(self, cond: Cond | None, batch: int) -> Array | None:
        given = None if cond is None else cond.text
        if self.text is None:
            if given is not None:
                raise ValueError("this decoder reads no text: leave cond.text out, or set text=(tokens, width)")
            return None
        if given is None and self.is_initializing():  # shapes of the parameters need no text of anyone
            return jnp.zeros((batch, *self.text))
        if given is None or given.shape[1:] != tuple(self.text):
            found = "none" if given is None else list(given.shape)
            length, width = self.text
            raise ValueError(f"this decoder reads text embeddings [B, {length}, {width}], got {found}: give cond.text")
        return given

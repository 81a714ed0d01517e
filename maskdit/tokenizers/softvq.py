"""SoftVQ-VAE: an image as a short sequence of soft codes (Chen et al. 2024, arXiv 2412.10958).

Two vision transformers of DINOv2's kind around a quantizer that averages codes, so that tokens stay continuous and
gradients pass: with `quantize.softvq.SoftVQ`. A generator takes the tokens as values, not as ids.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Latents, LatentSpec
from maskdit.layers.linear import Linear
from maskdit.layers.norm import layer_norm
from maskdit.layers.patch import patchify, unpatchify
from maskdit.tokenizers.latent_vit import after_class, run_blocks

Size = tuple[int, int, int]

SIZES: dict[str, Size] = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, depth and heads of DINOv2's transformers, of which the published tokenizers are made."""
_SMALL = nn.initializers.truncated_normal(0.02)
_PAIRS = ("layer_scale", "epsilon", "mlp_ratio", "qkv_bias")


class SoftVQVAE(nn.Module):
    """Images to a sequence of continuous tokens and back.

    Attributes:
      quantize: the quantizer, of as many `channels`, such as `SoftVQ`.
      size: side of the square images in pixels.
      patch: side of the encoder's patches in pixels.
      decoder_patch: side of the decoder's; None for `patch`.
      tokens: length of the sequence.
      channels: numbers per token.
      encoder, decoder: width, depth and heads of the two transformers, see `SIZES`.
      layer_scale: initial value of the learned factor of each channel of a branch, None for no factors; this and the
        following are pairs, of the encoder and of the decoder.
      epsilon: of the layer norms.
      mlp_ratio: hidden width of the perceptrons over the width.
      qkv_bias: whether queries, keys and values have a bias.
      scale, shift: a generator sees `(z - shift) * scale`.
      scan, remat: how blocks run, see `maskdit.layers.stack.run_stack`.
      dtype: precision of tokens and products; norms, softmax and codes are float32.

    Raises:
      ValueError: for fields that do not go together.
    """

    quantize: Any
    size: int = 256
    patch: int = 16
    decoder_patch: int | None = None
    tokens: int = 64
    channels: int = 32
    encoder: Size = SIZES["large"]
    decoder: Size = SIZES["large"]
    layer_scale: tuple[float | None, float | None] = (1e-5, 1e-5)
    epsilon: tuple[float, float] = (1e-6, 1e-6)
    mlp_ratio: tuple[float, float] = (4.0, 4.0)
    qkv_bias: tuple[bool, bool] = (True, True)
    scale: float = 1.0
    shift: float = 0.0
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        patch = self.decoder_patch or self.patch
        for side in (self.patch, patch):
            if self.size % side:
                raise ValueError(f"size={self.size} does not divide into patches of side {side}: change one of them")
        if self.quantize.channels != self.channels:
            raise ValueError(
                f"the quantizer has {self.quantize.channels} channels, the tokens {self.channels}: no layer stands "
                "between them, so set quantize.channels to channels"
            )
        shared: dict[str, Any] = {"tokens": self.tokens, "scan": self.scan, "remat": self.remat, "dtype": self.dtype}
        there, back = ({name: getattr(self, name)[side] for name in _PAIRS} for side in (0, 1))
        self._encoder = SoftVQEncoder(*self.encoder, patch=self.patch, **shared, **there, name="encoder")
        grid = self.size // patch
        self._decoder = SoftVQDecoder(*self.decoder, patch=patch, grid=grid, **shared, **back, name="decoder")
        part: dict[str, Any] = {"dtype": self.dtype, "kernel_init": _SMALL}
        self.quant = Linear(self.channels, axes=("embed", None), **part)
        self.post_quant = Linear(self.decoder[0], axes=(None, "embed"), **part)

    @property
    def latent(self) -> LatentSpec:
        """The latents: a sequence of values."""
        return LatentSpec(
            layout="sequence",
            downsample=self.patch,
            channels=self.channels,
            scale=self.scale,
            shift=self.shift,
            tokens=self.tokens,
            size=self.size,
        )

    @property
    def code_count(self) -> int:
        """Codes of all codebooks: what `aux["ids"]` of latents counts. A generator, which sees values, has none."""
        return self._codebooks * self.quantize.codes

    @property
    def _codebooks(self) -> int:
        return getattr(self.quantize, "codebooks", 1)

    @property
    def last_layer(self) -> str:
        """Path of the decoder's last kernel."""
        return "decoder/pixels/kernel"

    @property
    def encoder_last_layer(self) -> str:
        """Path of the encoder's last kernel."""
        return "quant/kernel"

    def __call__(self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None) -> Array:
        """Encodes and decodes: `[B, H, W, 3]` to the same shape."""
        return self.decode(self.encode(images, cond, draw=draw), cond)

    def features(self, images: Array) -> Array:
        """What the encoder makes of images `[B, size, size, 3]`, before the quantizer: `[B, tokens, channels]`.

        Raises:
          ValueError: for images of another size.
        """
        if images.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"this tokenizer takes images [B, {self.size}, {self.size}, 3], got {list(images.shape)}: resize them"
            )
        return self.quant(self._encoder(images)).astype(jnp.float32)

    def encode(
        self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Latents:
        """Encodes images.

        Args:
          images: `[B, size, size, 3]` in [-1, 1].
          cond: part of the contract; not used.
          draw, train: for the quantizer.

        Returns:
          Latents with `values` `[B, tokens, channels]`, scaled and shifted, the quantizer's losses, and its aux, with
          `ids` `[B, tokens]` of the likeliest codes, counted through all codebooks, 0 to `code_count - 1`: they tell
          the codes' usage; to decode them instead of the values loses most of the image.

        Raises:
          ValueError: for images of another size.
        """
        found = self.quantize(self.features(images), draw=draw, train=train)
        values = (found.values - self.shift) * self.scale
        ids = found.ids
        if self._codebooks > 1:  # the tokens are cut into equal runs
            book = jnp.arange(self.tokens, dtype=jnp.int32) // (self.tokens // self._codebooks)
            ids = ids + book * self.quantize.codes  # [B, tokens]
        return Latents(values=values, aux={**found.aux, "ids": ids}, losses=found.losses)

    def decode(
        self, latents: Latents, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Array:
        """Decodes latents to images.

        Args:
          latents: `values` `[B, tokens, channels]`, scaled and shifted.
          cond, draw, train: part of the contract; not used.

        Returns:
          Images `[B, size, size, 3]`, float32, about [-1, 1]: not clamped.

        Raises:
          ValueError: for latents without values.
        """
        if latents.values is None:
            raise ValueError("these latents have ids only: soft codes are values, those of this tokenizer's encode")
        return self._decoder(self.post_quant(latents.values / self.scale + self.shift))

    def codebook(self) -> Array:
        """The codes, as they are compared with tokens; of `SoftVQ` `[codebooks, codes, channels]`."""
        return self.quantize.codebook()


class SoftVQEncoder(nn.Module):
    """Images to the latent tokens at the end of a transformer; fields as in `SoftVQVAE`.

    Parameters: `patch_embed`, `class_token`, `positions` (of the class token and the patches), `latent_tokens`,
    `latent_positions`, `blocks_i`, `norm`.
    """

    width: int
    depth: int
    heads: int
    patch: int
    tokens: int
    layer_scale: float | None
    epsilon: float
    mlp_ratio: float
    qkv_bias: bool
    scan: bool
    remat: str
    dtype: str

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps images `[B, H, W, 3]` to `[B, tokens, width]`."""
        patches = patchify(images, self.patch)  # [B, N, p*p*3]
        embed = Linear(self.width, dtype=self.dtype, axes=("patch", "embed"), kernel_init=_SMALL, name="patch_embed")
        x = embed(patches)  # [B, N, D]
        x = after_class(x, _token(self, "class_token", 1), _token(self, "positions", 1 + x.shape[1]))
        latents = _token(self, "latent_tokens", self.tokens) + _token(self, "latent_positions", self.tokens)
        x = jnp.concatenate([x, jnp.broadcast_to(latents.astype(x.dtype), (len(x), *latents.shape))], axis=1)
        return _run(self, x)[:, -self.tokens :]


class SoftVQDecoder(nn.Module):
    """Latent tokens to an image, beside a mask token at each patch; fields as in `SoftVQVAE`, `grid` patches a side.

    Parameters: `mask_token`, `class_token`, `positions`, `latent_positions`, `blocks_i`, `norm`, `pixels`.
    """

    width: int
    depth: int
    heads: int
    patch: int
    grid: int
    tokens: int
    layer_scale: float | None
    epsilon: float
    mlp_ratio: float
    qkv_bias: bool
    scan: bool
    remat: str
    dtype: str

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps tokens `[B, tokens, width]` to images `[B, H, W, 3]`, float32."""
        batch, places = len(z), self.grid**2
        mask = _token(self, "mask_token", 1).astype(self.dtype)
        x = jnp.broadcast_to(mask, (batch, places, self.width))
        x = after_class(x, _token(self, "class_token", 1), _token(self, "positions", 1 + places))  # [B, 1 + N, D]
        z = z.astype(x.dtype) + _token(self, "latent_positions", self.tokens).astype(x.dtype)
        x = _run(self, jnp.concatenate([x, z], axis=1))[:, 1 : 1 + places]  # [B, N, D]
        pixels = Linear(self.patch**2 * 3, dtype=self.dtype, axes=("embed", "patch"), kernel_init=_SMALL, name="pixels")
        return unpatchify(pixels(x), (self.grid, self.grid), self.patch).astype(jnp.float32)


def _run(module: Any, x: Array) -> Array:
    x = run_blocks(
        x,
        module.depth,
        module.heads,
        epsilon=module.epsilon,
        layer_scale=module.layer_scale,
        mlp_ratio=module.mlp_ratio,
        qkv_bias=module.qkv_bias,
        scan=module.scan,
        remat=module.remat,
        dtype=module.dtype,
    )
    return layer_norm("norm", module.epsilon)(x)


def _token(module: Any, name: str, count: int) -> Array:
    return module.param(name, _SMALL, (count, module.width), jnp.float32)

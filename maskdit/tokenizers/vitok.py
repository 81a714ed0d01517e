"""ViTok: a plain vision transformer as a KL autoencoder (Hansen-Estruch et al. 2025, arXiv 2501.09755), for images.

What an image's latents hold is bounded by `E = tokens * channels` numbers (equation 2), whichever way it comes about.
Where the paper leaves open how: layer norms with scale and bias, biases in all products, and places by rotation over
rows and columns (its third axis is the time of videos, which stands still in an image) with the usual base 10000. With
these the parameters are within half a percent of its table 1.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskdit.contracts import Array, Cond, Draw, Latents, LatentSpec
from maskdit.layers.attention import attention
from maskdit.layers.linear import Linear
from maskdit.layers.norm import layer_norm
from maskdit.layers.patch import patchify, unpatchify
from maskdit.layers.rope import axial_angles, rotate
from maskdit.layers.stack import run_stack
from maskdit.tokenizers.posterior import normal_posterior

Size = tuple[int, int, int]

SIZES: dict[str, Size] = {"S": (768, 6, 12), "B": (768, 12, 12), "L": (1152, 24, 16)}
"""Width, depth and heads of a side (table 1 of the paper)."""
_EPSILON = 1e-6


def size(name: str) -> dict[str, Any]:
    """The fields `encoder`, `decoder` and `patch` of a size such as `S-B/16`: encoder, decoder, side of a patch.

    Raises:
      ValueError: where the name is not of this form.
    """
    sides, _, patch = name.partition("/")
    encoder, _, decoder = sides.partition("-")
    if encoder not in SIZES or decoder not in SIZES or not patch.isdecimal() or int(patch) < 1:
        raise ValueError(f"there is no size '{name}': name two of {', '.join(SIZES)} and a patch side, as in 'S-B/16'")
    return {"encoder": SIZES[encoder], "decoder": SIZES[decoder], "patch": int(patch)}


class ViTok(nn.Module):
    """Images to continuous latents on a grid and back.

    Attributes:
      patch: side of a patch in pixels.
      channels: numbers per latent position.
      encoder, decoder: width, depth and heads of the two transformers, see `SIZES`.
      scale, shift: a generator sees `(z - shift) * scale`.
      sample: whether `encode` draws from the posterior when it is given a draw; else it takes the mean.
      scan, remat: how blocks run, see `maskdit.layers.stack.run_stack`.
      dtype: precision of tokens and products; norms, softmax and the posterior are float32.
    """

    patch: int = 16
    channels: int = 16
    encoder: Size = SIZES["S"]
    decoder: Size = SIZES["B"]
    scale: float = 1.0
    shift: float = 0.0
    sample: bool = True
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        run: dict[str, Any] = {"scan": self.scan, "remat": self.remat, "dtype": self.dtype}
        self._encoder = GridTransformer(*self.encoder, features=2 * self.channels, **run, name="encoder")
        self._decoder = GridTransformer(*self.decoder, features=self.patch**2 * 3, **run, name="decoder")

    @property
    def latent(self) -> LatentSpec:
        """The latents: a grid, one position per patch."""
        return LatentSpec(
            layout="grid", downsample=self.patch, channels=self.channels, scale=self.scale, shift=self.shift
        )

    @property
    def last_layer(self) -> str:
        """Path of the decoder's last kernel."""
        return "decoder/out/kernel"

    @property
    def encoder_last_layer(self) -> str:
        """Path of the encoder's last kernel."""
        return "encoder/out/kernel"

    def __call__(self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None) -> Array:
        """Encodes and decodes: `[B, H, W, 3]` to the same shape."""
        return self.decode(self.encode(images, cond, draw=draw), cond)

    def encode(
        self, images: Array, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Latents:
        """Encodes images.

        Args:
          images: `[B, H, W, 3]` in [-1, 1], sides that are multiples of `patch`.
          cond, train: part of the contract; not used.
          draw: where given, and `sample` is set, latents are drawn from the posterior. Draws: `posterior` (normal).

        Returns:
          Latents with `values` `[B, h, w, channels]`, scaled and shifted, and in `aux` `moments` `[B, h, w, 2 *
          channels]` and `kl` `[B]` in nats.

        Raises:
          ValueError: for sides that do not divide into patches.
        """
        batch, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height} x {width} do not divide into patches of side {self.patch}: resize or crop them"
            )
        grid = (height // self.patch, width // self.patch)
        moments = self._encoder(patchify(images, self.patch), grid)  # [B, N, 2c]
        return self.posterior(moments.reshape(batch, *grid, -1), draw=draw)

    def posterior(self, moments: Array, *, draw: Draw | None = None) -> Latents:
        """The latents that belong to `moments`, as `encode` returns them; for moments encoded beforehand."""
        return normal_posterior(moments, draw if self.sample else None, scale=self.scale, shift=self.shift)

    def decode(
        self, latents: Latents, cond: Cond | None = None, *, draw: Draw | None = None, train: bool = False
    ) -> Array:
        """Decodes latents to images.

        Args:
          latents: `values` `[B, h, w, channels]`, scaled and shifted.
          cond, draw, train: part of the contract; not used.

        Returns:
          Images `[B, H, W, 3]`, float32, about [-1, 1]: not clamped.

        Raises:
          ValueError: for latents without values.
        """
        if latents.values is None:
            raise ValueError("these latents have ids only: this autoencoder decodes values, those of its own encode")
        z = latents.values / self.scale + self.shift
        batch, rows, columns, channels = z.shape
        tokens = self._decoder(z.reshape(batch, rows * columns, channels), (rows, columns))  # [B, N, p*p*3]
        return unpatchify(tokens, (rows, columns), self.patch)


class GridTransformer(nn.Module):
    """One side: a product into the width, blocks, a norm and a product out of it.

    Parameters: `embed`, `blocks_i.{norm1, qkv, proj, norm2, gate, up, down}`, `norm`, `out`.

    Attributes:
      width, depth, heads: of the transformer.
      features: numbers per token that come out.
      scan, remat: see `maskdit.layers.stack.run_stack`.
      dtype: precision of tokens and products.
    """

    width: int
    depth: int
    heads: int
    features: int
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, grid: tuple[int, int]) -> Array:
        """Maps tokens `[B, N, c]` on a grid to `[B, N, features]`, float32.

        Raises:
          ValueError: where the width does not divide into heads of a multiple of four channels.
        """
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} heads: change one of them")
        angles = jnp.asarray(axial_angles(grid, self.width // self.heads))  # [N, d / 2]
        x = Linear(self.width, dtype=self.dtype, axes=("patch", "embed"), name="embed")(x)  # [B, N, D]
        blocks = [GridBlock(self.heads, self.dtype, name=f"blocks_{i}") for i in range(self.depth)]
        x, _ = run_stack(blocks, x, angles, scan=self.scan, remat=self.remat, dtype=self.dtype)
        x = layer_norm("norm", _EPSILON)(x)
        return Linear(self.features, dtype=self.dtype, axes=("embed", "patch"), name="out")(x).astype(jnp.float32)


class GridBlock(nn.Module):
    """A pre-norm block with rotated queries and keys and a gated perceptron (SwiGLU, Shazeer 2020, arXiv 2002.05202).

    The hidden width is 8/3 of the width, so that three products cost what the two of a plain perceptron do.

    Attributes:
      heads: attention heads.
      dtype: precision of the products.
    """

    heads: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, angles: Array) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, N, D]` at angles `[N, D / heads / 2]`; also returns `attn` and `mlp`, what is added."""
        batch, tokens, width = x.shape
        y = layer_norm("norm1", _EPSILON)(x)
        qkv = Linear(3 * width, dtype=self.dtype, axes=("embed", "heads"), parts=3, name="qkv")(y)  # 3 of [B, N, D]
        q, k, v = (part.reshape(batch, tokens, self.heads, -1) for part in qkv)  # [B, N, H, d]
        y = attention(rotate(q, angles), rotate(k, angles), v).reshape(batch, tokens, width)
        attn = Linear(width, dtype=self.dtype, axes=("heads", "embed"), name="proj")(y)
        x = x + attn
        y, hidden = layer_norm("norm2", _EPSILON)(x), 8 * width // 3
        gate, up = (
            Linear(hidden, dtype=self.dtype, axes=("embed", "mlp"), name=name)(y) for name in ("gate", "up")
        )  # [B, N, 8/3 D]
        mlp = Linear(width, dtype=self.dtype, axes=("mlp", "embed"), name="down")(nn.silu(gate) * up)
        return x + mlp, {"attn": attn, "mlp": mlp}

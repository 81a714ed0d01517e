"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): a vision transformer trained without labels, for scores and tokenizers.

Registers are tokens that belong to no patch (Darcet et al. 2023, arXiv 2309.16588).
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from maskdit.contracts import Array
from maskdit.encoders.features import Features, Preprocessing
from maskdit.encoders.resize import PIL_CUBIC, TORCH_CUBIC, cubic_taps, mix
from maskdit.layers.attention import SelfAttention
from maskdit.layers.linear import Linear
from maskdit.layers.norm import layer_norm
from maskdit.layers.patch import patchify
from maskdit.layers.stack import run_stack

MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
"""Of ImageNet's pixels from 0 to 255; the network sees images less the one, divided by the other."""
RULES = ("pil-bicubic", "edm2", "clean")
"""How published scores resize: by dgm-eval, by EDM2, by dgm-eval's `clean_resize`."""
EPSILON = 1e-6
PERCEPTRONS = ("gelu", "swiglu")
SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 384, "depth": 12, "heads": 6, "mlp": "gelu"},
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp": "gelu"},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp": "gelu"},
    "giant": {"width": 1536, "depth": 40, "heads": 24, "mlp": "swiglu"},
}
"""The published networks, all of patches of 14 pixels."""
_SMALL = nn.initializers.truncated_normal(0.02)
_TINY = nn.initializers.normal(1e-6)


@struct.dataclass
class Tokens:
    """Tokens of an image after the last norm, float32.

    Attributes:
      summary: the class token `[B, D]`.
      registers: `[B, R, D]`.
      patches: row by row, `[B, N, D]`.
    """

    summary: Array
    registers: Array
    patches: Array


class DINOv2(nn.Module):
    """A pre-norm transformer over a class token, registers and patches.

    Parameters: `patch_embed`, `class_token`, `positions` (of the class token and the patches), `registers`,
    `mask_token`, `blocks_i`, `norm`.

    Attributes:
      width, depth, heads, mlp: of the transformer, see `SIZES`; `mlp` is `gelu` or `swiglu`.
      patch: side of a patch in pixels.
      registers: number of registers.
      table_size: side in pixels of the square images that the table of positions is for. For others it is resized.
      antialias: whether that resizing is antialiased, as in the published networks with registers.
      offset: added to the number of patches that the table is resized to, as 0.1 in those without registers: places
        lie a little closer to each other than they should.
      layer_scale: initial value of the learned factor of each channel of a branch (LayerScale, Touvron et al. 2021,
        arXiv 2103.17239); None for no factors.
      mlp_ratio: hidden width of the perceptrons over the width; `swiglu` has two thirds of it, in multiples of 8.
      qkv_bias: whether queries, keys and values have a bias.
      size: side of the images that scores give it.
      scan: whether blocks run under one `lax.scan`: faster to compile; the same parameters and results.
      dtype: precision of tokens and products; norms, softmax and features are float32. In float32, products are whole
        on every device, so that figures are comparable.

    Raises:
      ValueError: for fields that do not go together.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp: str = "gelu"
    patch: int = 14
    registers: int = 0
    table_size: int = 518
    antialias: bool = False
    offset: float = 0.1
    layer_scale: float | None = 1.0
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    size: int = 224
    scan: bool = False
    dtype: str = "float32"

    def setup(self) -> None:
        """Makes the parts."""
        if self.mlp not in PERCEPTRONS:
            raise ValueError(f"there is no perceptron '{self.mlp}': use one of {', '.join(PERCEPTRONS)}")
        if self.table_size % self.patch:
            raise ValueError(
                f"table_size={self.table_size} does not divide into patches of side {self.patch}: change one of them"
            )
        if not 0 <= self.offset < 1:
            raise ValueError(f"offset is part of a patch, from 0 to below 1: got {self.offset}")
        self.patch_embed = Linear(self.width, dtype=self.dtype, axes=("patch", "embed"), kernel_init=_SMALL)
        self.class_token = self.param("class_token", _TINY, (1, self.width), jnp.float32)
        places = 1 + (self.table_size // self.patch) ** 2
        self.positions = self.param("positions", _SMALL, (places, self.width), jnp.float32)
        if self.registers:
            self.register_tokens = self.param("register_tokens", _TINY, (self.registers, self.width), jnp.float32)
        # stands in for hidden patches in DINOv2's own training; kept, so that published files come back whole
        self.mask_token = self.param("mask_token", nn.initializers.zeros_init(), (1, self.width), jnp.float32)
        self.blocks = [
            Block(self.heads, self.mlp, self.layer_scale, self.mlp_ratio, self.qkv_bias, self.dtype)
            for _ in range(self.depth)
        ]
        self.norm = layer_norm(None, EPSILON)

    @property
    def PREPROCESSING(self) -> Mapping[str, Preprocessing]:
        """How published scores make images ready, by the resize rule; the first is dgm-eval's (arXiv 2306.04675)."""
        return {rule: Preprocessing(rule, self.size, MEAN, DEVIATION) for rule in RULES}

    def __call__(self, x: Array) -> Features:
        """The class token, of which FD-DINOv2 is the Fréchet distance.

        Args:
          x: images `[B, H, W, 3]` as `PREPROCESSING` gives them; sides are multiples of `patch`.

        Returns:
          `pooled` `[B, width]`, float32; no `spatial`, no `logits`.

        Raises:
          ValueError: for images that do not divide into patches.
        """
        return Features(pooled=self.tokens(x)[0].summary)

    def tokens(self, x: Array, layers: Sequence[int] = (-1,)) -> tuple[Tokens, ...]:
        """Tokens after these blocks and the last norm.

        Args:
          x: images as those of `__call__`.
          layers: which blocks, from 0, or from the end with -1 as the last.

        Raises:
          ValueError: as `__call__`, and for a block that there is not.
        """
        return tuple(self._parts(self.norm(tokens)) for tokens in self.stream(x, layers))

    def stream(self, x: Array, layers: Sequence[int] = (-1,)) -> tuple[Array, ...]:
        """All tokens `[B, 1 + registers + N, width]` as they leave these blocks; arguments as those of `tokens`."""
        if any(not -self.depth <= layer < self.depth for layer in layers):
            raise ValueError(f"there are {self.depth} blocks, from 0 or from -1 backwards: got layers={tuple(layers)}")
        names = [f"blocks_{layer % self.depth}" for layer in layers]
        with self._whole():
            tokens = self.embed(x)
            _, found = run_stack(
                self.blocks, tokens, scan=self.scan, remat="none", dtype=self.dtype, taps=frozenset(names)
            )
        return tuple(found[name] for name in names)

    def embed(self, x: Array) -> Array:
        """What the first block sees, `[B, 1 + registers + N, width]`, of images as those of `__call__`."""
        if any(side % self.patch for side in x.shape[1:3]):
            if not self.is_initializing():
                raise ValueError(
                    f"this DINOv2 takes images whose sides are multiples of {self.patch}, got {list(x.shape)}"
                )
            x = jnp.zeros((len(x), self.patch, self.patch, x.shape[-1]))  # parameters fit images of any side
        grid = (x.shape[1] // self.patch, x.shape[2] // self.patch)
        places = self.places(*grid).astype(self.dtype)
        patches = self.patch_embed(patchify(x, self.patch)) + places[1:]  # [B, N, D]
        first = self.class_token.astype(self.dtype) + places[:1]
        if self.registers:  # they have no place
            first = jnp.concatenate([first, self.register_tokens.astype(self.dtype)])  # [1 + R, D]
        return jnp.concatenate([jnp.broadcast_to(first, (len(x), *first.shape)), patches], 1)

    def places(self, rows: int, columns: int) -> Array:
        """Positions of the class token and of a grid of patches, `[1 + rows * columns, width]`, float32."""
        side = self.table_size // self.patch
        if (rows, columns) == (side, side):
            return self.positions
        table = self.positions[1:].reshape(side, side, self.width)
        for axis, count in ((1, columns), (0, rows)):
            taps = cubic_taps(
                side,
                count,
                coefficient=PIL_CUBIC if self.antialias else TORCH_CUBIC,
                antialias=self.antialias,
                step=side / (count + self.offset),
            )
            table = mix(table, taps, axis)  # [rows, columns, D] in the end
        return jnp.concatenate([self.positions[:1], table.reshape(rows * columns, self.width)])

    def _parts(self, tokens: Array) -> Tokens:
        """All tokens `[B, 1 + R + N, D]`, told apart."""
        first = 1 + self.registers
        return Tokens(summary=tokens[:, 0], registers=tokens[:, 1:first], patches=tokens[:, first:])

    def _whole(self) -> contextlib.AbstractContextManager:
        """Keeps devices from rounding the factors of products, where no lower precision was asked for."""
        return jax.default_matmul_precision("float32") if self.dtype == "float32" else contextlib.nullcontext()


class Block(nn.Module):
    """A pre-norm transformer block; the width is that of its input.

    Attributes:
      heads: attention heads.
      mlp, layer_scale, mlp_ratio, qkv_bias, dtype: as those of `DINOv2`.
    """

    heads: int
    mlp: str = "gelu"
    layer_scale: float | None = 1.0
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, N, D]` to the same shape; also returns `attn` and `mlp`, what the branches add."""
        attend = SelfAttention(self.heads, self.dtype, qkv_bias=self.qkv_bias, kernel_init=_SMALL, name="attn")
        attn = self._scaled("scale1", attend(layer_norm("norm1", EPSILON)(x)))
        x = x + attn
        perceive = Perceptron(self.mlp, int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        mlp = self._scaled("scale2", perceive(layer_norm("norm2", EPSILON)(x)))
        return x + mlp, {"attn": attn, "mlp": mlp}

    def _scaled(self, name: str, branch: Array) -> Array:
        if self.layer_scale is None:
            return branch
        init = nn.initializers.constant(self.layer_scale)
        return branch * self.param(name, init, branch.shape[-1:], jnp.float32).astype(branch.dtype)


class Perceptron(nn.Module):
    """The perceptron of a block: `fc2(gelu(fc1(x)))` with the exact GELU, or SwiGLU (Shazeer 2020, arXiv 2002.05202).

    Attributes:
      kind: `gelu` or `swiglu`.
      hidden: width between the layers; of `swiglu`, which has three in place of two, two thirds of it, rounded up to a
        multiple of 8.
      dtype: precision of the products.
    """

    kind: str
    hidden: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps tokens `[B, N, D]` to the same shape."""
        part: dict[str, Any] = {"dtype": self.dtype, "kernel_init": _SMALL}
        if self.kind == "gelu":
            inner = Linear(self.hidden, axes=("embed", "mlp"), name="fc1", **part)(x)  # [B, N, hidden]
            inner = nn.gelu(inner, approximate=False)
        else:
            hidden = -(-int(self.hidden * 2 / 3) // 8) * 8
            gate, inner = Linear(2 * hidden, axes=("embed", "mlp"), parts=2, name="fc1", **part)(x)  # 2 of [B, N, h]
            inner = nn.silu(gate) * inner
        return Linear(x.shape[-1], axes=("mlp", "embed"), name="fc2", **part)(inner)

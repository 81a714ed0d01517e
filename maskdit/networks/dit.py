"""DiT: a transformer over patches of latents, conditioned by adaptive layer norm (Peebles & Xie 2023).

Parameters (kernels are `[in, out]`, that of `attn.qkv` `[in, 3, out]`): `patch_embed`, `time_embed.{fc1,fc2}`,
`label_embed.LABEL`, `blocks_i.{modulation, attn.qkv, attn.proj, mlp.fc1, mlp.fc2}`, `final.{modulation, linear}`.
"""

import functools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskdit.contracts import Cond, Draw, Layout, Prediction, null_condition
from maskdit.layers.attention import SelfAttention
from maskdit.layers.embed import LabelEmbed, TimeEmbed, sincos_2d
from maskdit.layers.linear import Linear
from maskdit.layers.mlp import Mlp
from maskdit.layers.modulate import gate_add, norm_modulate
from maskdit.layers.patch import gather_tokens, patchify, removed, scatter_tokens, unpatchify
from maskdit.layers.sharding import hold_rows
from maskdit.layers.stack import run_stack

Array = jax.Array

SIZES: dict[str, dict[str, int]] = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
"""Table 1 of the paper."""
TIME_FEATURES = 256


def size(name: str) -> dict[str, int]:
    """The fields `width`, `depth`, `heads` and `patch` of a size such as `XL/2`.

    Raises:
      ValueError: where the name is not one of S, B, L, XL, a slash and a patch side.
    """
    letter, _, patch = name.partition("/")
    if letter not in SIZES or not patch.isdecimal() or int(patch) < 1:
        raise ValueError(f"there is no size '{name}': use one of {', '.join(SIZES)} and a patch side, as in 'XL/2'")
    return {**SIZES[letter], "patch": int(patch)}


class Block(nn.Module):
    """Transformer block with adaLN-Zero; the width is that of its input.

    Attributes:
      heads: attention heads.
      mlp_ratio: hidden width of the perceptron over the width.
      dtype: dtype of the products.
      attention: attention backend.
    """

    heads: int
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Array, c: Array) -> tuple[Array, dict[str, Array]]:
        """Maps tokens `[B, N, D]` under a condition `[B, C]`; also returns `attn` and `mlp`, before their gates."""
        width = x.shape[-1]
        parts = jnp.split(hold_rows(_modulation(6 * width, self.dtype)(nn.silu(c))), 6, axis=-1)  # 6 of [B, D]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts
        attn = SelfAttention(self.heads, self.dtype, self.attention, name="attn")(
            norm_modulate(x, shift_attn, scale_attn)
        )
        x = gate_add(x, attn, gate_attn)
        mlp = Mlp(int(width * self.mlp_ratio), self.dtype, name="mlp")(norm_modulate(x, shift_mlp, scale_mlp))
        return gate_add(x, mlp, gate_mlp), {"attn": attn, "mlp": mlp}


def _modulation(features: int, dtype: str) -> Linear:
    """The product that gives shifts, scales and gates; zero at the start, so that blocks start as the identity."""
    zeros = nn.initializers.zeros_init()
    return Linear(features, dtype=dtype, axes=("embed", "cond"), kernel_init=zeros, name="modulation")


class Head(nn.Module):
    """Adaptive layer norm and one product, zero at the start: DiT's final layer, and MaskDiT's way into its decoder.

    Attributes:
      features: size of the output's last axis.
      dtype: dtype of the products.
      out_axis: logical name of the output axis.
    """

    features: int
    dtype: str = "float32"
    out_axis: str | None = "patch"

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        """Tokens `[B, N, D]` and a condition `[B, C]` to `[B, N, features]`."""
        shift, scale = jnp.split(hold_rows(_modulation(2 * x.shape[-1], self.dtype)(nn.silu(c))), 2, axis=-1)
        zeros, axes = nn.initializers.zeros_init(), ("embed", self.out_axis)
        linear = Linear(self.features, dtype=self.dtype, axes=axes, kernel_init=zeros, name="linear")
        return linear(norm_modulate(x, shift, scale))


class DiT(nn.Module):
    """Diffusion transformer.

    Attributes:
      input_size: side of the input.
      patch: side of a patch.
      channels: channels of the input.
      width, depth, heads: of the transformer; see `size`.
      mlp_ratio: hidden width of the perceptrons over the width.
      classes: label name -> number of classes; the embeddings of several are summed; empty for no condition.
      label_null: whether the tables have a row for the null label, whose id is the number of classes.
      learned_variance: whether as many channels again are predicted and returned as `aux["variance"]`.
      position_grid: side, in tokens, of the grid that the tables of places are stretched from, for weights that were
        trained at another resolution; None for the network's own.
      attention: attention backend, see `maskdit.layers.attention`.
      scan: whether blocks run under one `lax.scan`: faster to compile; the same parameters and results.
      remat: what a block keeps for the backward pass, a name of `maskdit.layers.stack.REMAT`.
      dtype: dtype of tokens and products; norms, softmax, time embedding and the output are float32.
    """

    input_size: int
    patch: int
    channels: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    classes: Mapping[str, int] = nn.FrozenDict()
    label_null: bool = True
    learned_variance: bool = False
    position_grid: int | None = None
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"

    @property
    def layout(self) -> Layout:
        """Tokens and patches of the input."""
        return square_layout(self.input_size, self.patch, self.channels)

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The names that `taps=` takes."""
        return ("tokens", "t_emb", *(("y_emb",) if self.classes else ()), *block_taps("blocks", self.depth), "final")

    def null(self, cond: Cond) -> Cond:
        """The condition with every label dropped.

        Raises:
          ValueError: where the network has no null label.
        """
        if self.classes and not self.label_null:
            raise ValueError("this network has no null label (label_null=False): train one with label_null=True")
        return null_condition(cond, self.classes)

    def macs(self, keep: int | None = None) -> int:
        """Multiply-adds of one example's forward pass with `keep` tokens, or all; embedding look-ups count nothing."""
        tokens, pixels, width = keep or self.layout.tokens, self.patch**2 * self.channels, self.width
        ends = tokens * width * pixels * (2 + self.learned_variance)
        condition = TIME_FEATURES * width + width**2 + 2 * width**2
        return self.depth * block_macs(tokens, width, width, self.mlp_ratio) + ends + condition

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        cond: Cond,
        *,
        keep: Array | None = None,
        taps: Sequence[str] = (),
        draw: Draw | None = None,
        train: bool = False,
    ) -> Prediction:
        """Predicts from a noisy input.

        Args:
          x: `[B, H, W, C]`.
          t: times as the embedding takes them, `[B]` or one for all.
          cond: labels `[B]` by name.
          keep: ids `[B, k]` of the tokens to process, in that order; removed patches of the output are zero and
            `aux["mask"]` `[B, N]` is 1 there. None for all.
          taps: inner values to return, of `tap_names`.
          draw, train: part of the contract; nothing here is random.

        Raises:
          ValueError: for an input of another shape, labels of other names, or an unknown tap.
        """
        del draw, train
        layout = self.layout
        check_call(x, layout, taps, self.tap_names)
        c, values = embed_condition(self.width, self.classes, self.label_null, t, cond, x.shape[0])
        tokens = embed_patches(x, self.patch, keep, self.width, self.dtype, self.position_grid)  # [B, N or k, D]
        values["tokens"] = tokens

        make = functools.partial(Block, self.heads, self.mlp_ratio, self.dtype, self.attention)
        blocks = [make(name=f"blocks_{i}") for i in range(self.depth)]
        tokens, inner = run_stack(
            blocks, tokens, c, scan=self.scan, remat=self.remat, dtype=self.dtype, taps=frozenset(taps)
        )

        features = self.patch**2 * self.channels * (2 if self.learned_variance else 1)
        tokens = Head(features, self.dtype, name="final")(tokens, c).astype(jnp.float32)
        values |= inner | {"final": tokens}
        aux = {}
        if keep is not None:
            tokens = scatter_tokens(tokens, keep, jnp.zeros((x.shape[0], layout.tokens, features), jnp.float32))
            aux["mask"] = removed(keep, layout.tokens)
        return prediction(tokens, layout, aux, {name: values[name] for name in taps})


def square_layout(side: int, patch: int, channels: int) -> Layout:
    """The layout of a square input.

    Raises:
      ValueError: where the side does not divide into patches.
    """
    if side % patch:
        raise ValueError(f"an input of side {side} does not divide into patches of side {patch}: change one of them")
    return Layout(grid=(side // patch, side // patch), patch=patch, channels=channels)


def block_taps(prefix: str, depth: int) -> tuple[str, ...]:
    """Names of the inner values of a stack of `depth` blocks."""
    return tuple(f"{prefix}_{i}{part}" for i in range(depth) for part in (".attn", ".mlp", ""))


def block_macs(tokens: int, width: int, condition: int, mlp_ratio: float) -> int:
    """Multiply-adds of one block on one example, modulation included."""
    weights = (4 * width + 2 * int(width * mlp_ratio)) * width
    return tokens * weights + 2 * tokens**2 * width + 6 * width * condition


def check_call(x: Array, layout: Layout, taps: Sequence[str], known: Sequence[str]) -> None:
    """Refuses an input of another shape and unknown taps, when the call is traced."""
    if x.shape[1:] != layout.shape:
        raise ValueError(f"the network takes inputs of shape [B, {', '.join(map(str, layout.shape))}], not {x.shape}")
    unknown = [name for name in taps if name not in known]
    if unknown:
        raise ValueError(f"there are no taps {unknown}: use names of {list(known)}")


def embed_condition(
    width: int, classes: Mapping[str, int], null_row: bool, t: Array, cond: Cond, batch: int
) -> tuple[Array, dict[str, Array]]:
    """The condition `[B, width]` of all blocks, float32, and its parts by tap name; called in a `compact` method."""
    values = {"t_emb": TimeEmbed(width, TIME_FEATURES, name="time_embed")(jnp.broadcast_to(t, (batch,)))}
    if classes:
        values["y_emb"] = LabelEmbed(classes, width, null_row, name="label_embed")(cond.labels)
    return sum(values.values()), dict(values)


def embed_patches(x: Array, patch: int, keep: Array | None, width: int, dtype: str, span: int | None = None) -> Array:
    """Embeds patches of `x` with their places, only those of `keep` where given; called in a `compact` method."""
    grid = (x.shape[1] // patch, x.shape[2] // patch)
    patches, places = patchify(x, patch), jnp.asarray(sincos_2d(width, grid, span))  # [B, N, p*p*C], [N, D]
    if keep is not None:
        # Before the embedding: removed patches cost nothing, and no gradient runs through the gather.
        patches, places = gather_tokens(patches, keep), places[keep]  # [B, k, p*p*C], [B, k, D]
    tokens = Linear(width, dtype=dtype, axes=("patch", "embed"), name="patch_embed")(patches)
    return tokens + places.astype(dtype)


def prediction(tokens: Array, layout: Layout, aux: dict[str, Array], taps: dict[str, Array]) -> Prediction:
    """Puts output tokens `[B, N, p*p*C']` together; channels beyond the input's are the variance."""
    out = unpatchify(tokens, layout.grid, layout.patch)  # [B, H, W, C']
    if out.shape[-1] > layout.channels:
        aux = aux | {"variance": out[..., layout.channels :]}
    return Prediction(x=out[..., : layout.channels], aux=aux, taps=taps)

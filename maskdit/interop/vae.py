"""Published KL autoencoders, in the names of diffusers (`AutoencoderKL`) or CompVis (latent diffusion, MAR, VA-VAE).

Sources: huggingface/diffusers `models/autoencoders/autoencoder_kl.py`; LTH14/mar `models/vae.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.rules import CONV, POINTWISE, LayoutError, Op, Row, Table, Unused, linear, parts
from maskdit.tokenizers.vae import VAE

COMPVIS_GROUPS = 32
"""Groups of the norms in CompVis' code, where they are no argument."""
COMPVIS_UNUSED = (r"loss\..*", r"discriminator\..*", r"model_ema\..*", r"foundation_model\..*", r"linear_proj\..*")
"""What stands beside an autoencoder in training checkpoints: losses, averages, VA-VAE's teacher and its projection."""

_THREE = parts(3)
_POINTWISE_QKV = Op(lambda x: _THREE.forward(x[..., 0, 0]), lambda x: _THREE.backward(x)[..., None, None])
"""The joined weights `[3C, C, 1, 1]` of 1x1 convolutions as the kernel `[C, 3, C]` of queries, keys and values."""

DIFFUSERS_HELD = (
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "in_channels",
    "out_channels",
    "latent_channels",
    "norm_num_groups",
    "act_fn",
    "scaling_factor",
    "shift_factor",
    "use_quant_conv",
    "use_post_quant_conv",
)
"""Entries of diffusers' configuration that say what the weights are for; its `sample_size` binds nothing."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the autoencoder that a published configuration describes.

    Args:
      config: arguments of diffusers' `AutoencoderKL` (`block_out_channels`, ...), or of CompVis' (`ch`, `ch_mult`, ...)
        with `latent_scale`, the factor of the generator that goes with it, and `latent_shift` where it has one.

    Raises:
      LayoutError: for a variant of the network that `VAE` does not have.
    """
    return _from_compvis(config) if "ch_mult" in config else _from_diffusers(config)


def _from_diffusers(config: Mapping[str, Any]) -> ConfigDict:
    _require(config, "act_fn", "silu")
    _require(config, "mid_block_add_attention", True)
    _require(config, "out_channels", config.get("in_channels", 3))
    _require(config, "use_post_quant_conv", config.get("use_quant_conv", True))
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        _require(config, key, [kind] * len(config["block_out_channels"]))
    return spec(
        VAE,
        channels=tuple(config["block_out_channels"]),
        layers_per_block=config["layers_per_block"],
        latent_channels=config["latent_channels"],
        groups=config.get("norm_num_groups", 32),
        quant_conv=config.get("use_quant_conv", True),
        scale=config["scaling_factor"],
        shift=config.get("shift_factor") or 0.0,
        in_channels=config.get("in_channels", 3),
    )


def _from_compvis(config: Mapping[str, Any]) -> ConfigDict:
    _require(config, "double_z", True)
    _require(config, "out_ch", config.get("in_channels", 3))
    _require(config, "z_channels", config["embed_dim"])
    levels = range(len(config["ch_mult"]))
    return spec(
        VAE,
        channels=tuple(config["ch"] * factor for factor in config["ch_mult"]),
        layers_per_block=config["num_res_blocks"],
        latent_channels=config["embed_dim"],
        # counted from the configured resolution, whatever the size of the images
        attention_levels=tuple(i for i in levels if config["resolution"] >> i in config["attn_resolutions"]),
        scale=config["latent_scale"],
        shift=config.get("latent_shift", 0.0),
        in_channels=config.get("in_channels", 3),
        stem=stem(config["ch"], config["ch_mult"]),
    )


def stem(width: int, factors: Sequence[int]) -> int | None:
    """The field `stem` of a network whose levels are `factors` times as wide as its first convolution."""
    return None if factors[0] == 1 else width


def to_reference(network: VAE) -> dict[str, Any]:
    """The arguments of CompVis' autoencoder that one of ours has, with `latent_scale` and `latent_shift`.

    The `resolution` that attention is counted from is 256 as in the published files; it is that of no image.

    Raises:
      LayoutError: where CompVis' autoencoder has no such part.
    """
    first, resolution = network.stem or network.channels[0], 256
    for holds, what in (
        (network.quant_conv, "no 1x1 convolutions at the latents (quant_conv=False)"),
        (network.patch == 1, f"patches of {network.patch} x {network.patch} pixels before its first level"),
        (network.groups == COMPVIS_GROUPS, f"{network.groups} groups in its norms, not {COMPVIS_GROUPS}"),
        (
            all(width % first == 0 for width in network.channels),
            f"levels of {network.channels} channels, not multiples of the first convolution's {first}",
        ),
        (
            resolution >> (len(network.channels) - 1),
            f"{len(network.channels)} levels, more than {resolution} pixels have",
        ),
    ):
        if not holds:
            raise LayoutError(
                f"this VAE has {what}: the autoencoder of CompVis (layout `reference`) has no such variant"
            )
    return {
        "embed_dim": network.latent_channels,
        "ch": first,
        "ch_mult": [width // first for width in network.channels],
        "num_res_blocks": network.layers_per_block,
        "attn_resolutions": [resolution >> level for level in network.attention_levels],
        "resolution": resolution,
        "z_channels": network.latent_channels,
        "double_z": True,
        "in_channels": network.in_channels,
        "out_ch": network.in_channels,
        "latent_scale": network.scale,
        "latent_shift": network.shift,
    }


def to_diffusers(network: VAE) -> dict[str, Any]:
    """The `config.json` of diffusers' `AutoencoderKL` for one of ours: the inverse of `from_reference`.

    Raises:
      LayoutError: where diffusers' autoencoder has no such part.
    """
    if network.stem not in (None, network.channels[0]):
        raise LayoutError(
            f"this VAE has {network.stem} channels after its first convolution and {network.channels[0]} in its first "
            "level: they are equal in diffusers' AutoencoderKL; use the layout `reference`"
        )
    if network.patch != 1:
        raise LayoutError(
            f"this VAE has patches of {network.patch} x {network.patch} pixels before its first level: diffusers' "
            "AutoencoderKL has none"
        )
    if network.attention_levels:
        raise LayoutError(
            f"this VAE has attention in its levels {tuple(network.attention_levels)}: diffusers' AutoencoderKL has it "
            "in the middle only; use the layout `reference`"
        )
    levels = len(network.channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(network.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": network.in_channels,
        "latent_channels": network.latent_channels,
        "layers_per_block": network.layers_per_block,
        "norm_num_groups": network.groups,
        "out_channels": network.in_channels,
        "scaling_factor": network.scale,
        "shift_factor": network.shift or None,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": network.quant_conv,
        "use_quant_conv": network.quant_conv,
    }


def _require(config: Mapping[str, Any], key: str, value: Any) -> None:
    given = config.get(key, value)
    if (list(given) if isinstance(given, list | tuple) else given) != value:
        raise LayoutError(f"{key}={given!r} in the published configuration: this autoencoder has only {key}={value!r}")


def diffusers(config: Mapping[str, Any]) -> Table:
    """Rows for the names of diffusers' `AutoencoderKL`, with the present and the earlier names of its attention."""
    levels = len(config["block_out_channels"])
    rows: list[Row] = []
    for side in ("encoder", "decoder"):
        for end in ("conv_in", "conv_out"):
            rows += linear(f"{side}.{end}", f"{side}/{end}", CONV)
        rows += norm_rows(f"{side}.conv_norm_out", f"{side}/norm_out")
        rows += block_rows(f"{side}.mid_block.resnets.{{j}}", f"{side}/mid_block_{{j}}", "conv_shortcut")
        for norm, q, k, v, out in (
            ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
            ("group_norm", "query", "key", "value", "proj_attn"),
        ):
            source, target = f"{side}.mid_block.attentions.0", f"{side}/mid_attn"
            rows += norm_rows(f"{source}.{norm}", f"{target}/norm") + linear(f"{source}.{out}", f"{target}/out")
            rows += linear((f"{source}.{q}", f"{source}.{k}", f"{source}.{v}"), f"{target}/qkv", _THREE)
    rows += block_rows("encoder.down_blocks.{i}.resnets.{j}", "encoder/down_{i}_block_{j}", "conv_shortcut")
    rows += linear("encoder.down_blocks.{i}.downsamplers.0.conv", "encoder/down_{i}_downsample", CONV)
    for i in range(levels):
        level = levels - 1 - i  # its decoder counts from the deepest level
        rows += block_rows(f"decoder.up_blocks.{i}.resnets.{{j}}", f"decoder/up_{level}_block_{{j}}", "conv_shortcut")
        rows += linear(f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder/up_{level}_upsample", CONV)
    return rows + linear("quant_conv", "quant", CONV) + linear("post_quant_conv", "post_quant", CONV)


def compvis(config: Mapping[str, Any]) -> Table:
    """Rows for the names of CompVis' latent diffusion; what only its training needs is passed over."""
    del config
    return [*compvis_rows(), *(Unused(source) for source in COMPVIS_UNUSED)]


def compvis_rows(qkv: tuple[str, ...] = ("q", "k", "v")) -> list[Row]:
    """Rows of encoder, decoder and the convolutions at the latents; `qkv` as in `attention_rows`."""
    rows: list[Row] = []
    for side, level in (("encoder", "down"), ("decoder", "up")):
        for end in ("conv_in", "conv_out"):
            rows += linear(f"{side}.{end}", f"{side}/{end}", CONV)
        rows += norm_rows(f"{side}.norm_out", f"{side}/norm_out")
        rows += block_rows(f"{side}.{level}.{{i}}.block.{{j}}", f"{side}/{level}_{{i}}_block_{{j}}")
        rows += attention_rows(f"{side}.{level}.{{i}}.attn.{{j}}", f"{side}/{level}_{{i}}_attn_{{j}}", qkv)
        rows += linear(f"{side}.{level}.{{i}}.{level}sample.conv", f"{side}/{level}_{{i}}_{level}sample", CONV)
        rows += block_rows(f"{side}.mid.block_1", f"{side}/mid_block_0")
        rows += block_rows(f"{side}.mid.block_2", f"{side}/mid_block_1")
        rows += attention_rows(f"{side}.mid.attn_1", f"{side}/mid_attn", qkv)
    return rows + linear("quant_conv", "quant", CONV) + linear("post_quant_conv", "post_quant", CONV)


def norm_rows(source: str, target: str) -> list[Row]:
    """Rows of a group norm."""
    return [Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")]


def block_rows(source: str, target: str, shortcut: str = "nin_shortcut") -> list[Row]:
    """Rows of a residual block; `shortcut` is the published name of its 1x1 convolution."""
    rows = linear(f"{source}.{shortcut}", f"{target}/shortcut", CONV)
    for n in (1, 2):
        rows += norm_rows(f"{source}.norm{n}", f"{target}/norm{n}")
        rows += linear(f"{source}.conv{n}", f"{target}/conv{n}", CONV)
    return rows


def attention_rows(source: str, target: str, qkv: tuple[str, ...] = ("q", "k", "v")) -> list[Row]:
    """Rows of self-attention made of 1x1 convolutions: of queries, keys and values each, or one of all three."""
    rows = norm_rows(f"{source}.norm", f"{target}/norm")
    rows += linear(tuple(f"{source}.{name}" for name in qkv), f"{target}/qkv", _POINTWISE_QKV)
    return rows + linear(f"{source}.proj_out", f"{target}/out", POINTWISE)

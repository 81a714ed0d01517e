"""VQ tokenizers in the names of diffusers' `VQModel`: the folder `vqvae` of aMUSEd and Meissonic.

Source: huggingface/diffusers `models/autoencoders/vq_model.py`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop import vae
from maskdit.interop.rules import LayoutError, Row, Table
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.vqgan import VQGAN

HELD = (
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "in_channels",
    "out_channels",
    "latent_channels",
    "num_vq_embeddings",
    "vq_embed_dim",
    "norm_num_groups",
    "norm_type",
    "act_fn",
    "mid_block_add_attention",
)
"""Entries of the configuration that say what the weights are for."""
COMMITMENT = 0.25
"""Fixed in the published code, which puts this weight on the code and 1 on the features."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the tokenizer that the arguments of `VQModel` describe.

    Args:
      config: its arguments; `unit_range` besides, whether images are in [0, 1] there: the pipelines of aMUSEd and
        Meissonic hand it such, and it is so where nothing is said.

    Raises:
      LayoutError: for a variant of the network that `VQGAN` does not have.
    """
    channels = tuple(config["block_out_channels"])
    for key, value in (
        ("act_fn", "silu"),
        ("norm_type", "group"),
        ("in_channels", 3),
        ("out_channels", 3),
        ("down_block_types", ["DownEncoderBlock2D"] * len(channels)),
        ("up_block_types", ["UpDecoderBlock2D"] * len(channels)),
    ):
        given = config.get(key, value)
        if (list(given) if isinstance(given, list | tuple) else given) != value:
            raise LayoutError(f"{key}={given!r} in the published configuration: VQGAN has only {key}={value!r}")
    return spec(
        VQGAN,
        channels=channels,
        layers_per_block=config["layers_per_block"],
        latent_channels=config["latent_channels"],
        groups=config.get("norm_num_groups", 32),
        attention_levels=(),
        middle_attention=config.get("mid_block_add_attention", True),
        unit_range=config.get("unit_range", True),
        quantize=spec(
            VQ,
            codes=config["num_vq_embeddings"],
            channels=config.get("vq_embed_dim") or config["latent_channels"],
            commitment=1.0,
            codebook_weight=COMMITMENT,
        ),
    )


def to_reference(network: VQGAN) -> dict[str, Any]:
    """The `config.json` of `VQModel` for one of ours; `unit_range` is no entry of it.

    Raises:
      LayoutError: where diffusers' model has no such part.
    """
    quantize, levels = network.quantize, len(network.channels)
    for holds, what in (
        (
            isinstance(quantize, VQ) and not quantize.l2 and quantize.bridge is None,
            f"the quantizer {type(quantize).__name__}, not VQ, or one with a bridge or l2",
        ),
        (network.decoder_channels in (None, network.channels), "a decoder of other channels than the encoder's"),
        (network.stem in (None, network.channels[0]), f"{network.stem} channels after its first convolution"),
        (network.patch == 1, f"patches of {network.patch} x {network.patch} pixels before its first level"),
        (network.quant_kernel == 1, f"{network.quant_kernel}x{network.quant_kernel} convolutions at the quantizer"),
        (not network.attention_levels, f"attention in its levels {tuple(network.attention_levels)}"),
    ):
        if not holds:
            raise LayoutError(f"this VQGAN has {what}: diffusers' VQModel has no such variant")
    assert isinstance(quantize, VQ)
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": list(network.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": network.latent_channels,
        "layers_per_block": network.layers_per_block,
        "lookup_from_codebook": True,
        "mid_block_add_attention": network.middle_attention,
        "norm_num_groups": network.groups,
        "norm_type": "group",
        "num_vq_embeddings": quantize.codes,
        "out_channels": 3,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "vq_embed_dim": quantize.channels,
    }


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the names of `VQModel`: those of diffusers' `AutoencoderKL`, and the codes."""
    return [*vae.diffusers(config), Row("quantize.embedding.weight", "quantize/codebook")]

"""LlamaGen's published VQGANs.

Source: FoundationVision/LlamaGen `tokenizer/tokenizer_image/vq_model.py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.rules import CONV, Fixed, LayoutError, Row, Table, linear
from maskdit.interop.vae import attention_rows, block_rows, norm_rows, stem
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.vqgan import VQGAN

WIDTH, BLOCKS = 128, 2
"""Width and residual blocks of the published code, where the arguments do not say."""
GROUPS = 32
_WINDOW = 65536  # uses of codes that training remembers


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the tokenizer that the arguments of LlamaGen's `VQModel` describe; dropout is not taken over.

    Args:
      config: its `ModelArgs`, with `ch` and `num_res_blocks` of its encoder and decoder where they are not 128 and 2.

    Raises:
      LayoutError: for a variant of the network that `VQGAN` does not have.
    """
    there, back = tuple(config["encoder_ch_mult"]), tuple(config["decoder_ch_mult"])
    if len(there) != len(back):
        raise LayoutError(f"encoder_ch_mult={there} and decoder_ch_mult={back}: VQGAN has as many levels on both sides")
    width = config.get("ch", WIDTH)
    return spec(
        VQGAN,
        channels=tuple(width * factor for factor in there),
        decoder_channels=None if there == back else tuple(width * factor for factor in back),
        layers_per_block=config.get("num_res_blocks", BLOCKS),
        latent_channels=config["z_channels"],
        groups=GROUPS,
        attention_levels=(len(there) - 1,),
        quant_kernel=1,
        stem=stem(width, there),
        quantize=spec(
            VQ,
            codes=config["codebook_size"],
            channels=config["codebook_embed_dim"],
            l2=config.get("codebook_l2_norm", True),
            commitment=config.get("commit_loss_beta", 0.25),
            codebook_weight=1.0,
            entropy=config.get("entropy_loss_ratio", 0.0),
            entropy_temperature=0.01,
        ),
    )


def to_reference(network: VQGAN) -> dict[str, Any]:
    """The arguments of LlamaGen's `VQModel` that one of ours has: the inverse of `from_reference`.

    Raises:
      LayoutError: where LlamaGen's tokenizer has no such part.
    """
    first, quantize = network.stem or network.channels[0], network.quantize
    back = network.channels if network.decoder_channels is None else network.decoder_channels
    for holds, what in (
        (
            isinstance(quantize, VQ) and quantize.bridge is None,
            f"the quantizer {type(quantize).__name__}, not VQ, or one with a bridge",
        ),
        (network.middle_attention, "no attention in its middle (middle_attention=False)"),
        (not network.unit_range, "images in [0, 1] inside (unit_range=True)"),
        (network.patch == 1, f"patches of {network.patch} x {network.patch} pixels before its first level"),
        (network.groups == GROUPS, f"{network.groups} groups in its norms, not {GROUPS}"),
        (network.quant_kernel == 1, f"{network.quant_kernel}x{network.quant_kernel} convolutions at the quantizer"),
        (
            tuple(network.attention_levels) == (len(network.channels) - 1,),
            f"attention in its levels {tuple(network.attention_levels)}, not the deepest alone",
        ),
        (
            all(width % first == 0 for width in (*network.channels, *back)),
            f"levels of {(*network.channels, *back)} channels, not multiples of the first convolution's {first}",
        ),
    ):
        if not holds:
            raise LayoutError(f"this VQGAN has {what}: LlamaGen's tokenizer has no such variant")
    assert isinstance(quantize, VQ)
    return {
        "codebook_size": quantize.codes,
        "codebook_embed_dim": quantize.channels,
        "codebook_l2_norm": quantize.l2,
        "codebook_show_usage": True,
        "commit_loss_beta": quantize.commitment,
        "entropy_loss_ratio": quantize.entropy,
        "encoder_ch_mult": [width // first for width in network.channels],
        "decoder_ch_mult": [width // first for width in back],
        "z_channels": network.latent_channels,
        "dropout_p": 0.0,
        "ch": first,
        "num_res_blocks": network.layers_per_block,
    }


def table(config: Mapping[str, Any]) -> Table:
    """Rows for LlamaGen's names; its decoder counts levels from the deepest."""
    deepest = len(config["encoder_ch_mult"]) - 1
    rows: list[Row] = []
    for side in ("encoder", "decoder"):
        for end in ("conv_in", "conv_out"):
            rows += linear(f"{side}.{end}", f"{side}/{end}", CONV)
        rows += norm_rows(f"{side}.norm_out", f"{side}/norm_out")
        rows += block_rows(f"{side}.mid.0", f"{side}/mid_block_0") + block_rows(f"{side}.mid.2", f"{side}/mid_block_1")
        rows += attention_rows(f"{side}.mid.1", f"{side}/mid_attn")
    for i in range(deepest + 1):
        for theirs, ours, change in (
            (f"encoder.conv_blocks.{i}", f"encoder/down_{i}", "downsample"),
            (f"decoder.conv_blocks.{i}", f"decoder/up_{deepest - i}", "upsample"),
        ):
            rows += block_rows(f"{theirs}.res.{{j}}", f"{ours}_block_{{j}}")
            rows += attention_rows(f"{theirs}.attn.{{j}}", f"{ours}_attn_{{j}}")
            rows += linear(f"{theirs}.{change}.conv", f"{ours}_{change}", CONV)
    rows += linear("quant_conv", "quant", CONV) + linear("post_quant_conv", "post_quant", CONV)
    rows.append(Row("quantize.embedding.weight", "quantize/codebook"))
    used = Fixed("quantize.codebook_used", lambda: np.zeros(_WINDOW, np.float32), checked=False)
    return [*rows, used] if config.get("codebook_show_usage", True) else rows

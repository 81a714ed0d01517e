"""VAR's published multi-scale VQVAE.

Source: FoundationVision/VAR `models/vqvae.py`, `models/quant.py`, `models/basic_vae.py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.rules import CONV, Fixed, LayoutError, Row, Table, linear
from maskdit.interop.vae import compvis_rows, stem
from maskdit.tokenizers.quantize.multiscale import MultiScaleVQ
from maskdit.tokenizers.vqgan import VQGAN

CH_MULT, BLOCKS = (1, 1, 2, 2, 4), 2
"""Levels and residual blocks, which are fixed in the published code."""
GROUPS = 32
_IDENTITY = 1e-6  # the published code has no convolution where `quant_resi` is less


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the tokenizer that the arguments of VAR's `VQVAE` describe; dropout is not taken over.

    Args:
      config: its arguments, with `ch_mult`, `num_res_blocks`, `using_sa` of its network where they differ.

    Raises:
      LayoutError: for a variant of the network that `VQGAN` does not have.
    """
    factors = tuple(config.get("ch_mult", CH_MULT))
    for key, value in (("in_channels", 3), ("using_mid_sa", True)):
        if config.get(key, value) != value:
            raise LayoutError(f"{key}={config[key]!r} in the published configuration: VQGAN has only {key}={value!r}")
    scales, residual = tuple(config["v_patch_nums"]), abs(config.get("quant_resi", 0.5))
    return spec(
        VQGAN,
        channels=tuple(config["ch"] * factor for factor in factors),
        layers_per_block=config.get("num_res_blocks", BLOCKS),
        latent_channels=config["z_channels"],
        groups=GROUPS,
        attention_levels=(len(factors) - 1,) if config.get("using_sa", True) else (),
        quant_kernel=config.get("quant_conv_ks", 3),
        stem=stem(config["ch"], factors),
        quantize=spec(
            MultiScaleVQ,
            codes=config["vocab_size"],
            channels=config["z_channels"],
            scales=scales,
            # none shared: one for each scale, or as many as another list of scales had
            phis=config.get("share_quant_resi", 4) or config.get("default_qresi_counts", 0) or len(scales),
            residual=residual if residual > _IDENTITY else 0.0,
            commitment=config.get("beta", 0.25),
            cosine=config.get("using_znorm", False),
        ),
    )


def to_reference(network: VQGAN) -> dict[str, Any]:
    """The arguments of VAR's `VQVAE` that one of ours has: the inverse of `from_reference`.

    Raises:
      LayoutError: where VAR's tokenizer has no such part.
    """
    first, deepest, quantize = network.stem or network.channels[0], len(network.channels) - 1, network.quantize
    for holds, what in (
        (isinstance(quantize, MultiScaleVQ), f"the quantizer {type(quantize).__name__}, not MultiScaleVQ"),
        (
            network.decoder_channels in (None, network.channels),
            f"a decoder of {network.decoder_channels} channels, other than the encoder's",
        ),
        (network.middle_attention, "no attention in its middle (middle_attention=False)"),
        (not network.unit_range, "images in [0, 1] inside (unit_range=True)"),
        (network.patch == 1, f"patches of {network.patch} x {network.patch} pixels before its first level"),
        (network.groups == GROUPS, f"{network.groups} groups in its norms, not {GROUPS}"),
        (
            tuple(network.attention_levels) in ((), (deepest,)),
            f"attention in its levels {tuple(network.attention_levels)}, not the deepest alone",
        ),
        (
            all(width % first == 0 for width in network.channels),
            f"levels of {network.channels} channels, not multiples of the first convolution's {first}",
        ),
    ):
        if not holds:
            raise LayoutError(f"this VQGAN has {what}: VAR's tokenizer has no such variant")
    assert isinstance(quantize, MultiScaleVQ)
    if quantize.channels != network.latent_channels:
        raise LayoutError(
            f"this VQGAN has {network.latent_channels} latent channels and {quantize.channels} of its codes: they are "
            "equal in VAR's tokenizer"
        )
    return {
        "vocab_size": quantize.codes,
        "z_channels": quantize.channels,
        "ch": first,
        "dropout": 0.0,
        "beta": quantize.commitment,
        "using_znorm": quantize.cosine,
        "quant_conv_ks": network.quant_kernel,
        "quant_resi": quantize.residual,
        "share_quant_resi": quantize.phis,
        "default_qresi_counts": 0,
        "v_patch_nums": list(quantize.scales),
        "ch_mult": [width // first for width in network.channels],
        "num_res_blocks": network.layers_per_block,
        "in_channels": 3,
        "using_sa": bool(network.attention_levels),
        "using_mid_sa": True,
    }


def table(config: Mapping[str, Any]) -> Table:
    """Rows for VAR's names, with the three that the convolutions after the codes have.

    Those of `share_quant_resi` are written; weights whose scales share none are read as well.
    """
    rows = [Row("quantize.embedding.weight", "quantize/codebook"), *compvis_rows(qkv=("qkv",))]
    shared, source, target = config.get("share_quant_resi", 4), "quantize.quant_resi", "quantize/phi_{i}"
    if shared == 1:
        rows += linear(f"{source}.qresi", "quantize/phi_0", CONV)
    elif shared:
        rows += linear(f"{source}.qresi_ls.{{i}}", target, CONV)
    rows += linear(f"{source}.{{i}}", target, CONV)
    shape = len(config["v_patch_nums"]), config["vocab_size"]
    return [*rows, Fixed("quantize.ema_vocab_hit_SV", lambda: np.zeros(shape, np.float32), checked=False)]

"""Published VQGANs of MaskGIT's structure, in the names of TiTok's repository or of MAGE and ENAT.

Sources: bytedance/1d-tokenizer `modeling/modules/maskgit_vqgan.py`; LeapLabTHU/ENAT `taming/models/vqgan.py`, with the
names of taming-transformers.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.rules import CONV, LayoutError, Row, Table, Unused, linear
from maskdit.interop.vae import block_rows, norm_rows, stem
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.vq import VQ

GROUPS = 32
"""Groups of the norms, which are no argument of the published code."""
TAMING_MIDDLE = 2
"""Middle blocks of MAGE's and ENAT's code, whatever the blocks of a level."""
TAMING_WEIGHT = 0.25
"""Weight of the codebook loss there; the commitment's is 1 in all of these."""
TAMING_UNUSED = (r"loss\..*", r"discriminator\..*", r"model_ema\..*")
"""What stands beside the network in training checkpoints."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the tokenizer that published arguments describe; dropout is not taken over.

    Args:
      config: of 1d-tokenizer's modules: `model` (`channel_mult`, `hidden_channels`, ...), `num_embeddings` and
        `commitment_cost`; or of ENAT's `VQModel`: `ddconfig` (`ch_mult`, `ch`, ...), `n_embed` and `embed_dim`.

    Raises:
      LayoutError: for a variant of the network that `MaskGITVQGAN` does not have.
    """
    if "ddconfig" in config:
        inner = config["ddconfig"]
        for key, value in (("double_z", False), ("in_channels", 3), ("out_ch", 3)):
            _require(inner, key, value)
        _require(config, "embed_dim", inner["z_channels"])
        middle, weight, codes = TAMING_MIDDLE, TAMING_WEIGHT, config["n_embed"]
        factors, width = tuple(inner["ch_mult"]), inner["ch"]
    else:
        inner = config["model"]
        _require(inner, "num_channels", 3)
        _require(inner, "num_resolutions", len(inner["channel_mult"]))
        _require(config, "embedding_dim", inner["z_channels"])
        middle, weight, codes = None, config.get("commitment_cost", 0.25), config["num_embeddings"]
        factors, width = tuple(inner["channel_mult"]), inner["hidden_channels"]
    return spec(
        MaskGITVQGAN,
        channels=tuple(width * factor for factor in factors),
        blocks=inner["num_res_blocks"],
        middle_blocks=middle,
        latent_channels=inner["z_channels"],
        stem=stem(width, factors),
        # the published loss has its weight on the term that moves the codes
        quantize=spec(VQ, codes=codes, channels=inner["z_channels"], commitment=1.0, codebook_weight=weight),
    )


def _require(config: Mapping[str, Any], key: str, value: Any) -> None:
    given = config.get(key, value)
    if given != value:
        raise LayoutError(f"{key}={given!r} in the published configuration: MaskGITVQGAN has only {key}={value!r}")


def to_reference(network: MaskGITVQGAN) -> dict[str, Any]:
    """The arguments of 1d-tokenizer's modules that one of ours has: the inverse of `from_reference`.

    Raises:
      LayoutError: where their network has no such part.
    """
    blocks = network.blocks
    if network.middle_blocks not in (None, blocks):
        raise LayoutError(
            f"this MaskGITVQGAN has {network.middle_blocks} middle blocks and {blocks} in a level: they are equal in "
            "1d-tokenizer's (layout `reference`)"
        )
    width, factors, codes, weight = _described(network, "1d-tokenizer's (layout `reference`)")
    return {
        "model": {
            "channel_mult": factors,
            "num_resolutions": len(factors),
            "dropout": 0.0,
            "hidden_channels": width,
            "num_channels": 3,
            "num_res_blocks": blocks,
            "z_channels": network.latent_channels,
        },
        "num_embeddings": codes,
        "commitment_cost": weight,
    }


def to_taming(network: MaskGITVQGAN) -> dict[str, Any]:
    """The arguments of ENAT's `VQModel` that one of ours has.

    Raises:
      LayoutError: where that model has no such part.
    """
    blocks = network.blocks
    middle = blocks if network.middle_blocks is None else network.middle_blocks
    if middle != TAMING_MIDDLE:
        raise LayoutError(
            f"this MaskGITVQGAN has {middle} middle blocks: that of MAGE and ENAT (layout `taming`) has {TAMING_MIDDLE}"
        )
    width, factors, codes, _ = _described(network, "MAGE's and ENAT's (layout `taming`)")
    return {
        "ddconfig": {
            "double_z": False,
            "z_channels": network.latent_channels,
            "in_channels": 3,
            "out_ch": 3,
            "ch": width,
            "ch_mult": factors,
            "num_res_blocks": blocks,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "n_embed": codes,
        "embed_dim": network.latent_channels,
    }


def _described(network: MaskGITVQGAN, whose: str) -> tuple[int, list[int], int, float]:
    """Width, its factors by level, codes and weight of the codebook loss; refuses what neither published code has."""
    first, quantize = network.stem or network.channels[0], network.quantize
    for holds, what in (
        (network.groups == GROUPS, f"{network.groups} groups in its norms, not {GROUPS}"),
        (
            all(width % first == 0 for width in network.channels),
            f"levels of {network.channels} channels, not multiples of the first convolution's {first}",
        ),
        (
            isinstance(quantize, VQ) and not quantize.l2 and quantize.bridge is None,
            f"the quantizer {type(quantize).__name__}, not VQ, or one with a bridge or l2",
        ),
    ):
        if not holds:
            raise LayoutError(f"this MaskGITVQGAN has {what}: there is no such variant of {whose}")
    assert isinstance(quantize, VQ)
    return first, [width // first for width in network.channels], quantize.codes, quantize.codebook_weight


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the names that go with published arguments, told apart as in `from_reference`."""
    if "ddconfig" not in config:
        return _rows({"mid.{j}": "mid_block_{j}"}, "upsample_conv")
    middle = {f"mid.block_{j + 1}": f"mid_block_{j}" for j in range(TAMING_MIDDLE)}
    return [*_rows(middle, "upsample.conv"), *(Unused(source) for source in TAMING_UNUSED)]


def _rows(middle: Mapping[str, str], upsample: str) -> list[Row]:
    """All rows, given what the two differ in: their names of the middle blocks -> ours, and one convolution's."""
    rows = [Row("quantize.embedding.weight", "quantize/codebook")]
    for side, level in (("encoder", "down"), ("decoder", "up")):
        for end in ("conv_in", "conv_out"):
            rows += linear(f"{side}.{end}", f"{side}/{end}", CONV)
        rows += norm_rows(f"{side}.norm_out", f"{side}/norm_out")
        for theirs, ours in ({f"{level}.{{i}}.block.{{j}}": f"{level}_{{i}}_block_{{j}}"} | dict(middle)).items():
            rows += block_rows(f"{side}.{theirs}", f"{side}/{ours}")
    return rows + linear(f"decoder.up.{{i}}.{upsample}", "decoder/up_{i}_upsample", CONV)

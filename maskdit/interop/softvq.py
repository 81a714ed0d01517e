"""Published SoftVQ-VAE tokenizers, in the names of their authors' code.

Source: Hhhhhhao/continuous_tokenizer `modelling/tokenizer.py`, `modelling/modules/timm_vit/`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.rules import LayoutError, Op, Row, Table, Unused, linear, parts
from maskdit.interop.titok import patches
from maskdit.tokenizers.quantize.softvq import SoftVQ
from maskdit.tokenizers.softvq import SIZES, SoftVQVAE

UNUSED = (r"decoder\.model\.patch_embed\..*", r"quantize\.codebook_used", r"projection\..*", r"repa_model\..*")
"""What no image needs: patches of the decoder, which takes none, a count of used codes, and parts of the losses."""
_START = 1e-5  # of the factors of branches
FIXED = {
    "enc_type": "vit",
    "dec_type": "vit",
    "to_pixel": "linear",
    "use_ape": True,
    "use_rope": False,
    "dec_cls_token": True,
}
"""Arguments that have one value here. Without a class token the published decoder runs with rotated places only."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the tokenizer that published arguments describe.

    Args:
      config: the fields of the published `ModelArgs`; `encoder_vit` and `decoder_vit` where the sizes of the named
        models are overridden.

    Raises:
      LayoutError: for a variant that `SoftVQVAE` does not have.
    """
    for key, value in {**FIXED, "base_image_size": config["image_size"]}.items():
        if config.get(key, value) != value:
            raise LayoutError(f"{key}={config[key]!r} in the published configuration: SoftVQVAE has only {value!r}")
    sides = [_side(config, side) for side in ("encoder", "decoder")]
    patch, decoder_patch = config["enc_patch_size"], config["dec_patch_size"]
    return spec(
        SoftVQVAE,
        quantize=spec(
            SoftVQ,
            codes=config["codebook_size"],
            channels=config["codebook_embed_dim"],
            codebooks=config["num_codebooks"],
            l2=config["codebook_l2_norm"],
            tau=config["tau"],
            entropy=config["entropy_loss_ratio"],
        ),
        size=config["image_size"],
        patch=patch,
        decoder_patch=None if decoder_patch == patch else decoder_patch,
        tokens=config["num_latent_tokens"],
        channels=config["codebook_embed_dim"],
        **{name: tuple(side[name] for side in sides) for name in ("layer_scale", "epsilon", "mlp_ratio", "qkv_bias")},
        encoder=sides[0]["size"],
        decoder=sides[1]["size"],
        scale=1.0 / config.get("vq_std", 1.0),
        shift=config.get("vq_mean", 0.0),
    )


def _side(config: Mapping[str, Any], side: str) -> dict[str, Any]:
    """Of one transformer: its `size`, and the fields of `SoftVQVAE` that are pairs."""
    given = config.get(f"{side}_vit")
    if given is None:
        name = config[f"{side}_model"]
        size = next((size for key, size in SIZES.items() if name.startswith(f"vit_{key}_patch14_dinov2")), None)
        if size is None or "reg" in name or "movq" in name:
            raise LayoutError(f"{side}_model={name!r} in the published configuration: SoftVQVAE has plain DINOv2 ones")
        given = {}
    else:
        size = (given["embed_dim"], given["depth"], given["num_heads"])
    return {
        "size": size,
        "layer_scale": _START if given.get("layer_scale", True) else None,
        "epsilon": given.get("layer_norm_eps", 1e-6),
        "mlp_ratio": float(given.get("mlp_ratio", 4)),
        "qkv_bias": given.get("qkv_bias", True),
    }


def to_reference(network: SoftVQVAE) -> dict[str, Any]:
    """The published arguments that one of ours has: the inverse of `from_reference`.

    Raises:
      LayoutError: where the published code has no such part.
    """
    quantize, names = network.quantize, {size: name for name, size in SIZES.items()}
    if not isinstance(quantize, SoftVQ):
        raise LayoutError(
            f"this SoftVQVAE has the quantizer {type(quantize).__name__}: the published one (layout `reference`) has "
            "SoftVQ"
        )
    sides: dict[str, Any] = {}
    for i, side in enumerate(("encoder", "decoder")):
        size = tuple(getattr(network, side))
        sides[f"{side}_model"] = f"vit_{names.get(size, 'small')}_patch14_dinov2.lvd142m"
        sides[f"{side}_vit"] = {
            **dict(zip(("embed_dim", "depth", "num_heads"), size, strict=True)),
            "mlp_ratio": network.mlp_ratio[i],
            "qkv_bias": network.qkv_bias[i],
            "layer_norm_eps": network.epsilon[i],
            "layer_scale": network.layer_scale[i] is not None,
        }
    return {
        **FIXED,
        **sides,
        "image_size": network.size,
        "base_image_size": network.size,
        "codebook_size": quantize.codes,
        "codebook_embed_dim": quantize.channels,
        "codebook_l2_norm": quantize.l2,
        "num_codebooks": quantize.codebooks,
        "tau": quantize.tau,
        "entropy_loss_ratio": quantize.entropy,
        "num_latent_tokens": network.tokens,
        "enc_patch_size": network.patch,
        "dec_patch_size": network.decoder_patch or network.patch,
        "vq_mean": network.shift,
        "vq_std": 1.0 / network.scale,
    }


ROWS = Op(lambda x: x.reshape(x.shape[1:]), lambda x: x.reshape(1, *x.shape))
"""Tokens `[1, N, D]` as `[N, D]`."""


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the names of the published code."""
    rows = [Row("quantize.embedding", "quantize/codebook"), Row("encoder.latent_tokens", "encoder/latent_tokens", ROWS)]
    rows += linear("quant_conv", "quant") + linear("post_quant_conv", "post_quant")
    rows += linear("encoder.model.patch_embed.proj", "encoder/patch_embed", patches(config["enc_patch_size"]))
    rows.append(Row("decoder.mask_token", "decoder/mask_token", ROWS))
    rows += linear("decoder.to_pixel.model", "decoder/pixels")
    for side in ("encoder", "decoder"):
        rows.append(Row(f"{side}.latent_pos_embed", f"{side}/latent_positions", ROWS))
        rows.append(Row(f"{side}.model.cls_token", f"{side}/class_token", ROWS))
        rows.append(Row(f"{side}.model.pos_embed", f"{side}/positions", ROWS))
        rows += _norm(f"{side}.model.norm", f"{side}/norm")
        source, target = f"{side}.model.blocks.{{i}}", f"{side}/blocks_{{i}}"
        for n in (1, 2):
            rows += _norm(f"{source}.norm{n}", f"{target}/norm{n}")
            rows.append(Row(f"{source}.ls{n}.gamma", f"{target}/scale{n}"))
            rows += linear(f"{source}.mlp.fc{n}", f"{target}/fc{n}")
        rows += linear(f"{source}.attn.qkv", f"{target}/attn/qkv", parts(3))
        rows += linear(f"{source}.attn.proj", f"{target}/attn/proj")
    return [*rows, *(Unused(source) for source in UNUSED)]


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")]

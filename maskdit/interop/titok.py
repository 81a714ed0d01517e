"""Published TiTok and TA-TiTok tokenizers, in the names of their authors' code.

Source: bytedance/1d-tokenizer `modeling/titok.py`, `modeling/tatitok.py`, `modeling/modules/blocks.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop import maskgit_vqgan
from maskdit.interop.rules import CONV, POINTWISE, LayoutError, Row, Table, Unused, flatten, linear, parts
from maskdit.tokenizers.maskgit_vqgan import MaskGITVQGAN
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.titok import SIZES, TiTok

PIXEL = {
    "channel_mult": (1, 1, 2, 2, 4),
    "num_resolutions": 5,
    "hidden_channels": 128,
    "num_channels": 3,
    "num_res_blocks": 2,
    "z_channels": 256,
    "num_embeddings": 1024,
}
"""The MaskGIT-VQGAN whose codes the first version predicts; it is no argument of the published code."""
TEXT = (77, 768)
"""Tokens of the text and numbers per token, by default."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the tokenizer that published arguments describe.

    How a codebook is kept in use in training (`clustering_vq`) is not taken over.

    Args:
      config: `vq_model`, the arguments of that name; `crop_size`; where they differ from the published code `sizes`
        (name -> width, depth, heads) and `pixel` (arguments of the MaskGIT-VQGAN); `latent_scale` and `latent_shift`,
        the factor and shift of a generator that goes with a KL one. A text's length or width makes a TA-TiTok.

    Raises:
      LayoutError: for a variant that `TiTok` does not have.
    """
    model = config["vq_model"]
    sizes = {**SIZES, **{name: tuple(size) for name, size in config.get("sizes", {}).items()}}
    mode, legacy = model.get("quantize_mode", "vq"), model.get("is_legacy", True)
    tuned = model.get("finetune_decoder", True)
    if mode not in ("vq", "vae"):
        raise LayoutError(f"quantize_mode={mode!r} in the published configuration: TiTok has 'vq' and 'vae'")
    if tuned and not legacy:
        raise LayoutError("finetune_decoder=True goes with is_legacy=True: the current layout has a decoder of pixels")
    pixel = {**PIXEL, **config.get("pixel", {})}
    quantize = None
    if mode == "vq":
        quantize = spec(
            VQ,
            codes=model["codebook_size"],
            channels=model["token_size"],
            l2=model.get("use_l2_norm", False),
            commitment=model["commitment_cost"],
        )
    patch, decoder_patch = model["vit_enc_patch_size"], model["vit_dec_patch_size"]
    reads = "text_context_length" in model or "text_embed_dim" in model
    return spec(
        TiTok,
        quantize=quantize,
        size=config["crop_size"],
        patch=patch,
        decoder_patch=None if decoder_patch == patch else decoder_patch,
        tokens=model["num_latent_tokens"],
        channels=model["token_size"],
        encoder=sizes[model["vit_enc_model_size"]],
        decoder=sizes[model["vit_dec_model_size"]],
        legacy=legacy,
        proxy_codes=pixel["num_embeddings"],
        pixel=maskgit_vqgan.from_reference({"model": pixel, **pixel}) if tuned else None,
        text=(model.get("text_context_length", TEXT[0]), model.get("text_embed_dim", TEXT[1])) if reads else None,
        scale=config.get("latent_scale", 1.0),
        shift=config.get("latent_shift", 0.0),
    )


def to_reference(network: TiTok) -> dict[str, Any]:
    """The published arguments that one of ours has: the inverse of `from_reference`.

    Raises:
      LayoutError: where the published code has no such part.
    """
    quantize, patch = network.quantize, network.patch
    if quantize is not None and (not isinstance(quantize, VQ) or quantize.bridge is not None):
        raise LayoutError(
            f"this TiTok has the quantizer {type(quantize).__name__}: the published one (layout `reference`) has plain "
            "codes (VQ without a bridge), or a KL bottleneck"
        )
    names = {size: name for name, size in SIZES.items()}
    sides = {side: tuple(getattr(network, side)) for side in ("encoder", "decoder")}
    model: dict[str, Any] = {
        "quantize_mode": "vae" if quantize is None else "vq",
        "token_size": network.channels,
        "vit_enc_model_size": names.get(sides["encoder"], "encoder"),
        "vit_dec_model_size": names.get(sides["decoder"], "decoder"),
        "vit_enc_patch_size": patch,
        "vit_dec_patch_size": network.decoder_patch or patch,
        "num_latent_tokens": network.tokens,
        "is_legacy": network.legacy,
        "finetune_decoder": network.pixel is not None,
    }
    if quantize is not None:
        model["codebook_size"], model["use_l2_norm"] = quantize.codes, quantize.l2
        model["commitment_cost"] = quantize.commitment
    if network.text is not None:
        model["text_context_length"], model["text_embed_dim"] = network.text
    return {
        "crop_size": network.size,
        "sizes": {side: list(size) for side, size in sides.items() if size not in names},
        "pixel": _pixel(network),
        "vq_model": model,
        "latent_scale": network.scale,
        "latent_shift": network.shift,
    }


def _pixel(network: TiTok) -> dict[str, Any]:
    pixel = network.pixel
    if pixel is None:
        return {"num_embeddings": network.proxy_codes}
    if not isinstance(pixel, MaskGITVQGAN):
        raise LayoutError(
            f"this TiTok predicts codes of a {type(pixel).__name__}: the published one (layout `reference`) those of a "
            "MaskGITVQGAN"
        )
    theirs = maskgit_vqgan.to_reference(pixel)
    model, others = theirs["model"], {key: value for key, value in theirs.items() if key != "model"}
    return {**model, **others}


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the names of the published code."""
    model = config["vq_model"]
    pixel = {**PIXEL, **config.get("pixel", {})}
    rows: list[Row] = [Row("latent_tokens", "latent_tokens"), Row("quantize.embedding.weight", "quantize/codebook")]
    for side in ("encoder", "decoder"):
        for theirs, ours in (
            ("class_embedding", "class_token"),
            ("positional_embedding", "positions"),
            ("latent_token_positional_embedding", "latent_positions"),
        ):
            rows.append(Row(f"{side}.{theirs}", f"{side}/{ours}"))
        for theirs, ours in (("ln_pre", "norm_pre"), ("ln_post", "norm_post")):
            rows += _norm(f"{side}.{theirs}", f"{side}/{ours}")
        rows += _block(f"{side}.transformer.{{i}}", f"{side}/blocks_{{i}}")
    rows += linear("encoder.patch_embed", "encoder/patch_embed", patches(model["vit_enc_patch_size"]))
    rows += linear("encoder.conv_out", "encoder/conv_out", POINTWISE)
    rows += linear("decoder.decoder_embed", "decoder/embed")
    rows.append(Row("decoder.mask_token", "decoder/mask_token", _ROW))
    rows += linear("decoder.text_guidance_proj", "decoder/text_embed")
    rows.append(Row("decoder.text_guidance_positional_embedding", "decoder/text_positions"))
    if model.get("is_legacy", True):
        rows += linear("decoder.ffn.0", "decoder/ffn_in", POINTWISE) + linear(
            "decoder.ffn.2", "decoder/ffn_out", POINTWISE
        )
    else:
        rows += linear("decoder.ffn.0", "decoder/ffn", POINTWISE) + linear("decoder.conv_out", "decoder/conv_out", CONV)
    for row in maskgit_vqgan.table({"model": pixel}):
        if isinstance(row, Row) and row.target.startswith(("decoder/", "quantize/")):
            source = tuple(f"pixel_{name}" for name in row.sources)
            rows.append(dataclasses.replace(row, source=source, target=f"pixel/{row.target}"))
    return [*rows, Unused(r"quantize\.embed_prob")]


_ROW = flatten((0, 1, 2), (1, 1))
"""A token `[1, 1, D]` as one row `[1, D]`."""


def patches(side: int) -> Any:
    """The weight of a convolution over patches `[D, 3, p, p]` as the kernel `[p * p * 3, D]` of cut patches."""
    return flatten((2, 3, 1, 0), (side, side, 3))


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")]


def _block(source: str, target: str) -> list[Row]:
    rows = _norm(f"{source}.ln_1", f"{target}/norm1") + _norm(f"{source}.ln_2", f"{target}/norm2")
    rows += [
        Row(f"{source}.attn.in_proj_weight", f"{target}/attn/qkv/kernel", parts(3)),
        Row(f"{source}.attn.in_proj_bias", f"{target}/attn/qkv/bias"),
    ]
    rows += linear(f"{source}.attn.out_proj", f"{target}/attn/proj")
    return rows + linear(f"{source}.mlp.c_fc", f"{target}/fc1") + linear(f"{source}.mlp.c_proj", f"{target}/fc2")

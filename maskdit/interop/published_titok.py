"""Published tokenizers with a sequence of latents: TiTok, TA-TiTok, SoftVQ-VAE."""

from typing import Any

from maskdit.interop import softvq, titok
from maskdit.interop.publication import Published

_SIDES = {"s": "small", "b": "base", "l": "large"}
_LICENCE = "Apache-2.0, as the repository bytedance/1d-tokenizer states; for the weights unverified"


def _titok(
    name: str, sides: str, tokens: int, repository: str, about: str, paper: str, model: dict[str, Any], **facts: Any
) -> Published:
    """One of TiTok's family; `sides` are the letters of its encoder's and decoder's sizes."""
    return Published(
        name=name,
        about=about,
        paper=paper,
        file="model.safetensors",
        source=f"https://huggingface.co/{repository}/resolve/main/model.safetensors",
        licence=_LICENCE,
        reference={
            "crop_size": 256,
            "vq_model": {
                "vit_enc_model_size": _SIDES[sides[0]],
                "vit_dec_model_size": _SIDES[sides[1]],
                "vit_enc_patch_size": 16,
                "vit_dec_patch_size": 16,
                "num_latent_tokens": tokens,
                "is_legacy": False,
                "finetune_decoder": False,
                **model,
            },
        },
        from_reference=titok.from_reference,
        resolution=256,
        prefer=("model.safetensors", "pytorch_model.bin"),
        **facts,
    )


def _codes(count: int, channels: int, l2: bool) -> dict[str, Any]:
    return {
        "quantize_mode": "vq",
        "codebook_size": count,
        "token_size": channels,
        "use_l2_norm": l2,
        "commitment_cost": 0.25,
    }


def _first(side: str, tokens: int, fid: str) -> Published:
    return _titok(
        f"titok-{side}-{tokens}",
        side * 2,
        tokens,
        f"yucornetto/tokenizer_titok_{side}{tokens}_imagenet",
        f"TiTok-{side.upper()}-{tokens}, the first version: {tokens} tokens of 4096 codes, reconstruction FID {fid}",
        "2406.07550",
        {**_codes(4096, 12, True), "is_legacy": True, "finetune_decoder": True},
        also=(f"hf://fun-research/TiTok/tokenizer_titok_{side}{tokens}.bin",),
        note="its decoder gives the expected code of a MaskGIT-VQGAN, whose decoder the file holds too",
    )


def _second(sides: str, tokens: int, kind: str, fid: str) -> Published:
    codes = kind == "vq8k"
    what = "8192 codes" if codes else "16 channels (KL)"
    return _titok(
        f"titok-{sides}-{tokens}-{'vq8k' if codes else 'vae'}",
        sides,
        tokens,
        f"yucornetto/tokenizer_titok_{sides}{tokens}_{kind}_imagenet",
        f"TiTok-{sides.upper()}-{tokens}, {tokens} tokens of {what}, reconstruction FID {fid}",
        "2406.07550",
        _codes(8192, 64, False) if codes else {"quantize_mode": "vae", "token_size": 16},
        note="" if codes else "latents come unscaled",
    )


def _with_text(sides: str, tokens: int, kind: str) -> Published:
    model = _codes(8192, 64, False) if kind == "vq" else {"quantize_mode": "vae", "token_size": 16}
    return _titok(
        f"tatitok-{sides}-{tokens}-{kind}",
        sides,
        tokens,
        f"turkeyju/tokenizer_tatitok_{sides}{tokens}_{kind}",
        f"TA-TiTok-{sides.upper()}-{tokens}, {tokens} tokens of {'8192 codes' if kind == 'vq' else '16 channels (KL)'}",
        "2501.07730",
        {**model, "text_context_length": 77, "text_embed_dim": 768},
        also=(f"hf://fun-research/TA-TiTok/tatitok_{sides}{tokens}_{kind}.bin",),
        note="its decoder reads the 77 token states of OpenCLIP's ViT-L-14-336 (openai) after its last norm",
    )


def _softvq(letters: str, tokens: int) -> Published:
    encoder, decoder = (f"vit_{_SIDES[side]}_patch14_dinov2.lvd142m" for side in (letters[0], letters[-1]))
    return Published(
        name=f"softvq-{letters}-{tokens}",
        about=f"SoftVQ-{letters.upper()}-{tokens}, {tokens} tokens of 32 channels",
        paper="2412.10958",
        file="model.safetensors",
        source=f"https://huggingface.co/SoftVQVAE/softvq-{letters}-{tokens}/resolve/main/model.safetensors",
        licence="Apache-2.0, as the repository Hhhhhhao/continuous_tokenizer states; for the weights unverified",
        reference={
            "image_size": 256,
            "codebook_size": 8192,
            "codebook_embed_dim": 32,
            "codebook_l2_norm": True,
            "entropy_loss_ratio": 0.01,
            "tau": 0.07,
            "num_codebooks": 4,
            "encoder_model": encoder,
            "decoder_model": decoder,
            "num_latent_tokens": tokens,
            "enc_patch_size": 16,
            "dec_patch_size": 16,
        },
        from_reference=softvq.from_reference,
        resolution=256,
        prefer=("model.safetensors",),
        note="config.json beside it holds vq_mean and vq_std, by which generators normalise: give them as shift and "
        "1 / scale; latents come unscaled otherwise",
    )


ENTRIES = (
    _first("l", 32, "2.21"),
    _first("b", 64, "1.70"),
    _first("s", 128, "1.71"),
    _second("bl", 64, "vq8k", "2.06"),
    _second("bl", 128, "vq8k", "1.49"),
    _second("sl", 256, "vq8k", "1.03"),
    _second("ll", 32, "vae_c16", "1.61"),
    _second("bl", 64, "vae_c16", "1.25"),
    _second("bl", 128, "vae_c16", "0.84"),
    *(_with_text("bl", tokens, "vq") for tokens in (32, 64, 128)),
    *(_with_text(sides, tokens, "vae") for sides, tokens in (("bl", 32), ("bl", 64), ("sl", 128))),
    _softvq("l", 64),
)

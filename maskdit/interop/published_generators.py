"""Published generators of tokens: a function for each family, and the tokenizer that belongs to each."""

from typing import Any

from maskdit.interop import enat, maskgen, meissonic, rar, titok_generator
from maskdit.interop.publication import Published


def _titok(size: str, tokens: int, fid: str, model: dict[str, Any]) -> Published:
    """TiTok's, which goes with the first version of its tokenizer of the same name."""
    name = f"{size}{tokens}"
    return Published(
        name=f"titok-{size}-{tokens}-generator",
        about=f"generator of TiTok-{size.upper()}-{tokens} on ImageNet, FID {fid}",
        paper="2406.07550",
        file="model.safetensors",
        source=f"https://huggingface.co/yucornetto/generator_titok_{name}_imagenet/resolve/main/model.safetensors",
        licence="Apache-2.0, as the repository bytedance/1d-tokenizer states; for the weights unverified",
        reference={
            "codebook_size": 4096,
            "generator": {"image_seq_len": tokens, "condition_num_classes": 1000, **model},
        },
        from_reference=titok_generator.from_reference,
        resolution=256,
        also=(f"hf://fun-research/TiTok/generator_titok_{name}.bin",),
        prefer=("model.safetensors", "pytorch_model.bin"),
        generator=f"maskgit_imagenet256:titok-{size.upper()}-{tokens}",
        tokenizer=f"titok-{size}-{tokens}",
    )


def _enat(resolution: int, file: str, fid: str) -> Published:
    return Published(
        name=f"enat-l-{resolution}",
        about=f"ENAT-L on ImageNet{fid}",
        paper="2411.06959",
        file=file,
        source=None,
        licence="unverified",
        reference={
            "input_size": resolution // 16,
            "hidden_size": 1024,
            "num_heads": 16,
            "codebook_size": 1024,
            "num_classes": 1000,
            "args": {"enc_dec": (22, 2)},
        },
        from_reference=enat.from_reference,
        resolution=resolution,
        where="the Google Drive link in the README of the repository LeapLabTHU/ENAT",
        generator=f"enat_imagenet{resolution}:L",
        tokenizer="mage-vqgan-f16",
    )


def _rar(size: str, fid: str, width: int, depth: int, hidden: int) -> Published:
    """RAR's, on the codes of MaskGIT's VQGAN."""
    file = f"rar_{size}.bin"
    return Published(
        name=f"rar-{size}",
        about=f"RAR-{size.upper()} on ImageNet, FID {fid}",
        paper="2411.00776",
        file=file,
        source=f"https://huggingface.co/yucornetto/RAR/resolve/main/{file}",
        licence="Apache-2.0, as the repository bytedance/1d-tokenizer states; for the weights unverified",
        reference={
            "codebook_size": 1024,
            "generator": {
                "hidden_size": width,
                "num_hidden_layers": depth,
                "num_attention_heads": 16,
                "intermediate_size": hidden,
                "dropout": 0.1,
                "attn_drop": 0.1,
                "image_seq_len": 256,
                "condition_num_classes": 1000,
            },
        },
        from_reference=rar.from_reference,
        resolution=256,
        prefer=(file,),
        generator=f"rar_imagenet256:{size.upper()}",
        tokenizer="maskgit-vqgan-f16",
    )


def _maskgen(size: str, fid: str, width: int, depth: int) -> Published:
    """MaskGen's with codes, which go with a TA-TiTok of 128 tokens."""
    letter = size.upper()
    return Published(
        name=f"maskgen-vq-{size}",
        about=f"MaskGen-{letter}, text to images with 128 tokens of 8192 codes, FID {fid} on MJHQ-30K",
        paper="2501.07730",
        file="model.safetensors",
        source=f"https://huggingface.co/turkeyju/generator_maskgen_vq_{size}/resolve/main/model.safetensors",
        licence="Apache-2.0, as the repository bytedance/1d-tokenizer states; for the weights unverified",
        reference={
            "vq_model": {"codebook_size": 8192, "num_latent_tokens": 128, "text_embed_dim": 768},
            "maskgen": {
                "decoder_embed_dim": width,
                "decoder_depth": depth,
                "decoder_num_heads": 16,
                "micro_condition": True,
                "micro_condition_embed_dim": 256,
                "text_drop_prob": 0.1,
                "condition_num_classes": 1000,
                "sample_aesthetic_score": 6.5,
            },
        },
        from_reference=maskgen.from_reference,
        resolution=256,
        also=(f"hf://fun-research/TA-TiTok/maskgen_vq_{size}.bin",),
        prefer=("model.safetensors", "pytorch_model.bin"),
        generator=f"maskgen:{letter}-stage2",
        tokenizer="tatitok-bl-128-vq",
        note="reads the states of OpenCLIP's ViT-L-14-336 (openai) before its last block (`text`); its tokenizer's "
        "decoder was trained on those after the last norm (`decoder_text`)",
    )


_MEISSONIC = Published(
    name="meissonic-1024",
    about="Meissonic, text to images of 1024 x 1024",
    paper="2410.08261",
    file="diffusion_pytorch_model.safetensors",
    source="https://huggingface.co/MeissonFlow/Meissonic/resolve/main/transformer/diffusion_pytorch_model.safetensors",
    licence="Apache-2.0, as the repository viiika/Meissonic states; for the weights unverified",
    reference={
        "grid": (64, 64),
        "transformer": {
            "num_layers": 14,
            "num_single_layers": 28,
            "attention_head_dim": 128,
            "num_attention_heads": 8,
            "joint_attention_dim": 1024,
            "pooled_projection_dim": 1024,
            "axes_dims_rope": (16, 56, 56),
            "vocab_size": 8256,
            "codebook_size": 8192,
            "downsample": True,
            "upsample": True,
        },
    },
    from_reference=meissonic.from_reference,
    resolution=1024,
    prefer=("transformer/diffusion_pytorch_model.safetensors",),
    generator="meissonic:1024",
    overrides={"sampler.countdown": True, "sampler.count_dtype": "float32"},
    tokenizer="meissonic-vq-f16",
    note="reads the states of CLIP ViT-H/14 before its last layer and its projected text; the sizes are unverified",
)


_BERT = {
    "model_type": "ViT",
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
    "dropout": 0.1,
    "attn_drop": 0.1,
}
_UVIT = {
    "model_type": "UViT",
    "hidden_size": 1024,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}

ENTRIES = (
    _titok("l", 32, "2.77", _BERT),
    _titok("b", 64, "2.48", _BERT),
    _titok("s", 128, "1.97", _UVIT),
    _enat(256, "nnet_ema.pth", ", FID 2.79"),
    _enat(512, "nnet_ema_512.pth", ""),
    _rar("b", "1.95", 768, 24, 3072),
    _rar("l", "1.70", 1024, 24, 4096),
    _rar("xl", "1.50", 1280, 32, 5120),
    _rar("xxl", "1.48", 1408, 40, 6144),
    _maskgen("l", "7.74", 1024, 16),
    _maskgen("xl", "7.51", 1280, 20),
    _MEISSONIC,
)

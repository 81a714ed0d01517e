"""Published convolutional tokenizers with codes: those of MaskGIT, MAGE, LlamaGen, VAR and Meissonic."""

from collections.abc import Mapping
from typing import Any

from maskdit.interop import llamagen_vq, maskgit_vqgan, var_vqvae, vq_diffusers
from maskdit.interop.publication import Published

_HUB = "https://huggingface.co"


def _llamagen(name: str, file: str, multipliers: tuple[int, ...], about: str) -> Published:
    return Published(
        name=name,
        about=f"VQ tokenizer of LlamaGen, {about}",
        paper="2406.06525",
        file=file,
        source=f"{_HUB}/FoundationVision/LlamaGen/resolve/main/{file}",
        licence="MIT, as the repository FoundationVision/LlamaGen states; for the weights unverified",
        reference={
            "codebook_size": 16384,
            "codebook_embed_dim": 8,
            "codebook_l2_norm": True,
            "codebook_show_usage": True,
            "commit_loss_beta": 0.25,
            "entropy_loss_ratio": 0.0,
            "encoder_ch_mult": multipliers,
            "decoder_ch_mult": multipliers,
            "z_channels": 256,
            "dropout_p": 0.0,
        },
        from_reference=llamagen_vq.from_reference,
        resolution=256,
        prefer=(file,),
    )


def _var(resolution: int, scales: tuple[int, ...]) -> Published:
    file = "vae_ch160v4096z32.pth"
    return Published(
        name=f"var-vqvae-{resolution}",
        about=f"multi-scale VQVAE of VAR, 16 x smaller, 4096 codes, {len(scales)} scales",
        paper="2404.02905",
        file=file,
        source=f"{_HUB}/FoundationVision/var/resolve/main/{file}",
        licence="MIT, as the repository FoundationVision/VAR states; for the weights unverified",
        reference={
            "vocab_size": 4096,
            "z_channels": 32,
            "ch": 160,
            "dropout": 0.0,
            "beta": 0.25,
            "using_znorm": False,
            "quant_conv_ks": 3,
            "quant_resi": 0.5,
            "share_quant_resi": 4,
            "default_qresi_counts": 0,
            "v_patch_nums": scales,
        },
        from_reference=var_vqvae.from_reference,
        resolution=resolution,
        prefer=(file,),
        note="one file serves 256 and 512 pixels, with other scales",
    )


_TAMING: Mapping[str, Any] = {
    "ddconfig": {
        "double_z": False,
        "z_channels": 256,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": (1, 1, 2, 2, 4),
        "num_res_blocks": 2,
        "attn_resolutions": (16,),  # its code has no attention all the same
        "dropout": 0.0,
    },
    "n_embed": 1024,
    "embed_dim": 256,
}
_MASKGIT: Mapping[str, Any] = {
    "model": {
        "channel_mult": (1, 1, 2, 2, 4),
        "num_resolutions": 5,
        "dropout": 0.0,
        "hidden_channels": 128,
        "num_channels": 3,
        "num_res_blocks": 2,
        "resolution": 256,
        "z_channels": 256,
    },
    "num_embeddings": 1024,
    "commitment_cost": 0.25,
}

ENTRIES = (
    Published(
        name="maskgit-vqgan-f16",
        about="VQGAN of MaskGIT as TiTok uses it, 16 x smaller, 1024 codes",
        paper="2202.04200",
        file="maskgit-vqgan-imagenet-f16-256.bin",
        source=f"{_HUB}/fun-research/TiTok/resolve/main/maskgit-vqgan-imagenet-f16-256.bin",
        licence="Apache-2.0, as the repository bytedance/1d-tokenizer states; for the weights unverified",
        reference=_MASKGIT,
        from_reference=maskgit_vqgan.from_reference,
        resolution=256,
        prefer=("maskgit-vqgan-imagenet-f16-256.bin",),
    ),
    Published(
        name="mage-vqgan-f16",
        about="VQGAN of MAGE and ENAT, trained with strong augmentation, 16 x smaller, 1024 codes",
        paper="2211.09117",
        file="vqgan_jax_strongaug.ckpt",
        source=None,
        licence="MIT, as the repository LTH14/mage states; for the weights unverified",
        reference=_TAMING,
        from_reference=maskgit_vqgan.from_reference,
        resolution=256,
        where="the Google Drive link in the README of the repository LTH14/mage",
    ),
    _llamagen("llamagen-vq-16", "vq_ds16_c2i.pt", (1, 1, 2, 2, 4), "16 x smaller, 16384 codes, trained on ImageNet"),
    _llamagen("llamagen-vq-8", "vq_ds8_c2i.pt", (1, 2, 2, 4), "8 x smaller, 16384 codes, trained on ImageNet"),
    _llamagen("llamagen-vq-16-t2i", "vq_ds16_t2i.pt", (1, 1, 2, 2, 4), "16 x smaller, tuned on images with text"),
    Published(
        name="meissonic-vq-f16",
        about="VQGAN of aMUSEd as Meissonic ships it, 16 x smaller, 8192 codes",
        paper="2401.01808",
        file="diffusion_pytorch_model.safetensors",
        source=f"{_HUB}/MeissonFlow/Meissonic/resolve/main/vqvae/diffusion_pytorch_model.safetensors",
        licence="unverified",
        reference={
            "block_out_channels": (128, 256, 256, 512, 768),
            "layers_per_block": 2,
            "latent_channels": 64,
            "num_vq_embeddings": 8192,
            "norm_num_groups": 32,
            "mid_block_add_attention": False,
        },
        from_reference=vq_diffusers.from_reference,
        resolution=1024,
        prefer=("vqvae/diffusion_pytorch_model.safetensors",),
        note="its sizes are those of aMUSEd's",
    ),
    _var(256, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    _var(512, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
)

"""Published KL autoencoders."""

from typing import Any

from maskdit.interop import vae
from maskdit.interop.publication import Published


def _sd_vae(kind: str, about: str, original: str) -> Published:
    address = f"stabilityai/sd-vae-ft-{kind}"
    return Published(
        name=f"sd-vae-ft-{kind}",
        about=f"VAE of Stable Diffusion, {about}",
        paper="2112.10752",
        file="diffusion_pytorch_model.safetensors",
        source=f"https://huggingface.co/{address}/resolve/main/diffusion_pytorch_model.safetensors",
        licence="MIT",
        reference={
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "act_fn": "silu",
            "latent_channels": 4,
            "norm_num_groups": 32,
            "scaling_factor": 0.18215,
        },
        from_reference=vae.from_reference,
        resolution=256,
        also=(f"hf://{address}-original/{original}",),
        prefer=tuple(
            f"{place}diffusion_pytorch_model.{kind}" for place in ("", "vae/") for kind in ("safetensors", "bin")
        ),
    )


def _compvis(channels: int, scale: float, **facts: Any) -> Published:
    return Published(
        reference={
            "embed_dim": channels,
            "z_channels": channels,
            "double_z": True,
            "ch": 128,
            "ch_mult": (1, 1, 2, 2, 4),
            "num_res_blocks": 2,
            "attn_resolutions": (16,),
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "latent_scale": scale,
        },
        from_reference=vae.from_reference,
        resolution=256,
        **facts,
    )


ENTRIES = (
    _sd_vae("ema", "decoder tuned further, average of its weights", "vae-ft-ema-560000-ema-pruned.safetensors"),
    _sd_vae("mse", "decoder tuned further for squared error: smoother", "vae-ft-mse-840000-ema-pruned.safetensors"),
    _compvis(
        16,
        0.2325,
        name="mar-vae-kl16",
        about="KL-16 VAE of MAR, 16 x smaller, 16 channels",
        paper="2406.11838",
        file="kl16.ckpt",
        source="https://www.dropbox.com/scl/fi/hhmuvaiacrarfg28qxhwz/kl16.ckpt?rlkey=l44xipsezc8atcffdp4q7mwmh&dl=1",
        licence="MIT, as the repository LTH14/mar states",
        where="run util/download.py of the repository LTH14/mar",
    ),
    _compvis(
        32,
        1.0,
        name="va-vae-f16d32",
        about="VA-VAE, 16 x smaller, 32 channels, aligned with DINOv2",
        paper="2501.01423",
        file="vavae-imagenet256-f16d32-dinov2.pt",
        source="https://huggingface.co/hustvl/vavae-imagenet256-f16d32-dinov2/resolve/main/"
        "vavae-imagenet256-f16d32-dinov2.pt",
        licence="MIT, as the repository hustvl/LightningDiT states; unverified",
        note="latents come unscaled; LightningDiT normalises each channel by the file latents_stats.pt beside it",
    ),
)

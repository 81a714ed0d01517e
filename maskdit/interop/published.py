"""The published weights that `maskdit import` knows by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.interop import dit, maskdit, vae


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights that their authors published.

    Attributes:
      name: the name that commands take.
      about: what it is, in a few words.
      paper: arXiv number.
      file: name of the authors' file.
      source: the URL that it is fetched from; None where there is no fixed address.
      licence: of the weights, as far as known.
      reference: arguments of the authors' code at full size.
      from_reference: turns these into the spec of ours.
      resolution: side in pixels of the images that it was trained on.
      also: other sources of the same weights.
      prefer: patterns of the file in a Hugging Face repository that is given without a path, the best first.
      where: how to get the file where there is no source.
      generator: the config of a generator, `NAME:variant`; empty for a tokenizer.
      overrides: entries of that config that are different here: path -> value.
      vae: the name here of a generator's VAE.
      note: what else one should know.
    """

    name: str
    about: str
    paper: str
    file: str
    source: str | None
    licence: str
    reference: Mapping[str, Any]
    from_reference: Callable[[Mapping[str, Any]], ConfigDict]
    resolution: int
    also: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    where: str = ""
    generator: str = ""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    vae: str = ""
    note: str = ""

    def spec(self) -> ConfigDict:
        """The spec of the network or tokenizer that the published arguments describe."""
        return self.from_reference(self.reference)

    def config(self) -> ConfigDict:
        """The config that the weights go with: that of a run for a generator, `tokenizer` alone for a tokenizer."""
        if self.generator:
            return configs.load(self.generator, self.overrides)
        return ConfigDict({"tokenizer": self.spec()})


_XL = {"depth": 28, "hidden_size": 1152, "patch_size": 2, "num_heads": 16, "mlp_ratio": 4.0, "num_classes": 1000}


def _dit(resolution: int, fid: str) -> Published:
    """The decoder of sd-vae-ft-ema gives the paper's figures; the authors' sampling script takes ft-mse by default."""
    side = {"input_size": resolution // 8, "in_channels": 4, "class_dropout_prob": 0.1, "learn_sigma": True}
    return Published(
        name=f"dit-xl-2-{resolution}",
        about=f"DiT-XL/2 on ImageNet, FID {fid}",
        paper="2212.09748",
        file=f"DiT-XL-2-{resolution}x{resolution}.pt",
        source=f"https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-{resolution}x{resolution}.pt",
        licence="CC BY-NC 4.0",
        reference=_XL | side,
        from_reference=dit.from_reference,
        resolution=resolution,
        also=(f"hf://facebook/DiT-XL-2-{resolution}",),
        prefer=tuple(f"transformer/diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin")),
        generator=f"dit_imagenet{resolution}:XL/2",
        vae="sd-vae-ft-ema",
        note="the authors' demo takes guidance 4",
    )


def _maskdit(resolution: int, guided: bool, file: str, fid: str) -> Published:
    fixed = {"img_channels": 4, "use_decoder": True, "mae_loss_coef": 0.1, "pad_cls_token": False}
    return Published(
        name=f"maskdit-xl-2-{resolution}" + ("" if guided else "-conditional"),
        about=f"MaskDiT-XL/2 on ImageNet, {'for guidance' if guided else 'for sampling without guidance'}, FID {fid}",
        paper="2306.09305",
        file=file,
        source=f"https://huggingface.co/hzzheng/MaskDiT/resolve/main/checkpoints/{file}",
        licence="MIT, as the code's repository states; for the weights unverified",
        reference=_XL | fixed | {"img_resolution": resolution // 8},
        from_reference=maskdit.from_reference,
        resolution=resolution,
        generator=f"maskdit_imagenet{resolution}:XL/2",
        prefer=(f"checkpoints/{file}",),
        overrides={} if guided else {"guidance.weight": 1.0},
        vae="sd-vae-ft-ema",
    )


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


_ALL = (
    _dit(256, "2.27"),
    _dit(512, "3.04"),
    _maskdit(256, True, "imagenet256-ckpt-best_with_guidance.pt", "2.28"),
    _maskdit(256, False, "imagenet256-ckpt-best_without_guidance.pt", "5.69"),
    _maskdit(512, True, "1080000.pt", "2.50"),
    _maskdit(512, False, "1050000.pt", "10.79"),
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
ALIASES: dict[str, Published] = {entry.name: entry for entry in _ALL}


def listing() -> str:
    """What `maskdit import --list` prints: every name with what it is, where it is, and what it becomes."""
    return "\n\n".join(_described(entry) for entry in ALIASES.values())


def _described(entry: Published) -> str:
    lines = {
        "file": entry.file,
        "from": entry.source or entry.where,
        "also": ", ".join(entry.also),
        "licence": entry.licence,
        "becomes": _becomes(entry),
        "sampling": _sampling(entry.config()) if entry.generator else "",
        "note": entry.note,
    }
    head = f"{entry.name}: {entry.about} (arXiv {entry.paper}), {entry.resolution} x {entry.resolution}"
    return "\n".join([head, *(f"  {key:<9} {text}" for key, text in lines.items() if text)])


def _becomes(entry: Published) -> str:
    if entry.generator:
        return f"the config {entry.generator}, with the VAE {entry.vae}"
    return "a tokenizer (VAE)"


def _sampling(config: ConfigDict) -> str:
    """The sampler and guidance of a config, in words."""
    sampler = config.sampler[configs.TARGET].rpartition(":")[2]
    weight, channels = config.guidance.weight, config.guidance.channels
    which = "all channels" if channels is None else f"the first {channels} channels"
    guidance = "no guidance" if weight == 1 else f"guidance {weight:g} of {which}"
    return f"{sampler}, {config.sampler.steps} steps, {guidance}"

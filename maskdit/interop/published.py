"""The published weights that `maskdit import` knows by name."""

from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.interop import (
    dit,
    maskdit,
    published_encoders,
    published_generators,
    published_titok,
    published_vae,
    published_vqgan,
)
from maskdit.interop.publication import Published

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
        tokenizer="sd-vae-ft-ema",
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
        tokenizer="sd-vae-ft-ema",
    )


_ALL = (
    _dit(256, "2.27"),
    _dit(512, "3.04"),
    _maskdit(256, True, "imagenet256-ckpt-best_with_guidance.pt", "2.28"),
    _maskdit(256, False, "imagenet256-ckpt-best_without_guidance.pt", "5.69"),
    _maskdit(512, True, "1080000.pt", "2.50"),
    _maskdit(512, False, "1050000.pt", "10.79"),
    *published_generators.ENTRIES,
    *published_titok.ENTRIES,
    *published_vae.ENTRIES,
    *published_vqgan.ENTRIES,
    *published_encoders.ENTRIES,
)
ALIASES: dict[str, Published] = {entry.name: entry for entry in _ALL}


def listing() -> str:
    """What `maskdit import --list` prints: every name with what it is, where it is, and what it becomes."""
    return "\n\n".join(_described(entry) for entry in ALIASES.values())


def _described(entry: Published) -> str:
    lines = {
        "file": entry.file,
        "from": entry.source or (str(entry.package) if entry.package else entry.where),
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
        return f"the config {entry.generator}, with the tokenizer {entry.tokenizer}"
    tokenizer = f"a tokenizer ({entry.spec().target.rpartition(':')[2]})"
    return tokenizer if entry.part == "tokenizer" else "an encoder, for losses and measures"


def _sampling(config: ConfigDict) -> str:
    """The sampler and guidance of a config, in words."""
    sampler, guidance = config.sampler, config.guidance
    words = [sampler[configs.TARGET].rpartition(":")[2]]
    words.append(f"{sampler.steps} steps" if sampler.get("steps") else "a step for each token")
    if guidance is None or guidance.weight == 1:
        return ", ".join([*words, "no guidance"])
    told = f"guidance {guidance.weight:g}"
    if guidance.schedule != "constant":
        told = f"guidance up to {guidance.weight:g} ({guidance.schedule})"
    if "vocabulary" not in config.task.network:
        told += " of all channels" if guidance.channels is None else f" of the first {guidance.channels} channels"
    return ", ".join([*words, told])

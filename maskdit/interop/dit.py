"""Published DiT weights (facebookresearch/DiT, `models.DiT`)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.rules import Fixed, Op, Row, Table, flatten, linear, parts
from maskdit.layers.embed import sincos_2d
from maskdit.networks.dit import DiT

LABEL = "label"
"""Name of the published models' one label."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that the arguments of the published `DiT` describe."""
    return spec(
        DiT,
        input_size=config["input_size"],
        patch=config["patch_size"],
        channels=config["in_channels"],
        width=config["hidden_size"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        classes={LABEL: config["num_classes"]},
        label_null=config["class_dropout_prob"] > 0,
        learned_variance=config["learn_sigma"],
    )


def table(config: Mapping[str, Any]) -> Table:
    """The rows that belong to the arguments of the published `DiT`."""
    side = config["input_size"] // config["patch_size"]
    return [
        Fixed("pos_embed", lambda: sincos_2d(config["hidden_size"], (side, side))[None]),
        Row("y_embedder.embedding_table.weight", f"label_embed/{LABEL}"),
        *linear("x_embedder.proj", "patch_embed", patch_kernel(config["patch_size"])),
        *times("t_embedder", "time_embed"),
        *blocks("blocks", "blocks"),
        *head("final_layer", "final"),
    ]


def patch_kernel(patch: int) -> Op:
    """The convolution that embeds patches, `[D, C, p, p]`, as a kernel `[p * p * C, D]`, channel fastest."""
    return flatten((2, 3, 1, 0), (patch, patch, -1))


def times(source: str, target: str) -> list[Row]:
    """Rows of the time embedding."""
    return linear(f"{source}.mlp.0", f"{target}/fc1") + linear(f"{source}.mlp.2", f"{target}/fc2")


def head(source: str, target: str) -> list[Row]:
    """Rows of an adaptive layer norm with one product."""
    return linear(f"{source}.linear", f"{target}/linear") + linear(
        f"{source}.adaLN_modulation.1", f"{target}/modulation"
    )


def blocks(source: str, target: str) -> list[Row]:
    """Rows of a stack of transformer blocks."""
    source, target = f"{source}.{{i}}", f"{target}_{{i}}"
    rows = linear(f"{source}.adaLN_modulation.1", f"{target}/modulation")
    rows += linear(f"{source}.attn.qkv", f"{target}/attn/qkv", parts(3))
    for layer in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        rows += linear(f"{source}.{layer}", f"{target}/{layer.replace('.', '/')}")
    return rows

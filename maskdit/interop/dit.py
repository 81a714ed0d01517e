"""Published DiT weights (facebookresearch/DiT, `models.DiT`)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.rules import Fixed, LayoutError, Op, Row, Table, flatten, linear, parts
from maskdit.layers.embed import sincos_2d
from maskdit.networks.dit import DiT

LABEL = "label"
"""Name of the published models' one label."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that the arguments of the published `DiT` describe.

    Args:
      config: the published arguments; `label` beside them gives our name of the label, else `LABEL`, and
        `position_grid` the grid that the table of places is stretched from.
    """
    return spec(
        DiT,
        input_size=config["input_size"],
        patch=config["patch_size"],
        channels=config["in_channels"],
        width=config["hidden_size"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        classes={config.get("label", LABEL): config["num_classes"]},
        label_null=config["class_dropout_prob"] > 0,
        learned_variance=config["learn_sigma"],
        position_grid=config.get("position_grid"),
    )


def to_reference(network: DiT) -> dict[str, Any]:
    """The arguments of the published `DiT` that a network of ours has, with `label` and `position_grid`.

    The inverse of `from_reference`. Stretched places are no argument there, but the table that the weights hold.

    Raises:
      LayoutError: where the published model has no such part: no label or several.
    """
    label = one_label(network)
    return {
        "input_size": network.input_size,
        "patch_size": network.patch,
        "in_channels": network.channels,
        "hidden_size": network.width,
        "depth": network.depth,
        "num_heads": network.heads,
        "mlp_ratio": network.mlp_ratio,
        "num_classes": network.classes[label],
        "class_dropout_prob": 0.1 if network.label_null else 0.0,
        "learn_sigma": network.learned_variance,
        "label": label,
        "position_grid": network.position_grid,
    }


def one_label(network: Any) -> str:
    """The name of a network's only label.

    Raises:
      LayoutError: where it has none or several.
    """
    if len(network.classes) != 1:
        given = ", ".join(network.classes) or "none"
        raise LayoutError(
            f"this {type(network).__name__} has {len(network.classes)} labels ({given}): the published "
            "model has exactly one"
        )
    return next(iter(network.classes))


def table(config: Mapping[str, Any]) -> Table:
    """The rows that belong to the arguments of the published `DiT`."""
    side = config["input_size"] // config["patch_size"]
    return [
        places("pos_embed", config["hidden_size"], side, config.get("position_grid")),
        label_table("y_embedder.embedding_table.weight", config),
        *linear("x_embedder.proj", "patch_embed", patch_kernel(config["patch_size"])),
        *times("t_embedder", "time_embed"),
        *blocks("blocks", "blocks"),
        *head("final_layer", "final"),
    ]


def places(source: str, width: int, side: int, span: int | None) -> Fixed:
    """The row of a table of places, `[1, side * side, width]`, stretched from a grid of `span` where that is given."""
    return Fixed(source, lambda: sincos_2d(width, (side, side), span)[None], places=1)


def label_table(source: str, config: Mapping[str, Any], copies: int = 1) -> Row:
    """The row of DiT's label table, `[classes, D]`, or `[classes + 1, D]` with a null label."""
    null = int(config.get("class_dropout_prob", 0.1) > 0)
    return Row(source, f"label_embed/{config.get('label', LABEL)}", copies=copies, classes=(0, null))


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

"""Published ENAT weights (LeapLabTHU/ENAT, `libs.models.DiT`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop import dit
from maskdit.interop.rules import Fixed, LayoutError, Op, Row, Table, linear, parts
from maskdit.networks.enat import ENAT, REUSE_RATIO

UNUSED = tuple(f"prev_embedder.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias"))
"""A perceptron that the published model holds and does not use; zeros are written there."""
_FLAT = Op(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1))
"""A bias `[1, 1, V]` as `[V]`."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that the arguments of the published `DiT` describe.

    Args:
      config: the published arguments, `enc_dec` inside `args`; `label` beside them gives our name of the label, else
        `maskdit.interop.dit.LABEL`.

    Raises:
      LayoutError: without the depths of encoder and decoder.
    """
    depths = config["args"].get("enc_dec")
    if not depths or len(depths) != 2:
        raise LayoutError(f"args.enc_dec={depths!r} in the published configuration: give encoder and decoder blocks")
    return spec(
        ENAT,
        vocabulary=config.get("codebook_size", 1024),
        grid=(config["input_size"],) * 2,
        width=config["hidden_size"],
        depth=depths[0],
        decoder_depth=depths[1],
        heads=config["num_heads"],
        mlp_ratio=config.get("mlp_ratio", 4.0),
        classes={config.get("label", dit.LABEL): config["num_classes"]},
        label_null=config.get("class_dropout_prob", 0.1) > 0,
    )


def to_reference(network: ENAT) -> dict[str, Any]:
    """The arguments of the published `DiT` that a network of ours has, with `label`: the inverse of `from_reference`.

    Raises:
      LayoutError: where the published model has no such part: no label or several, a grid that is not square.
    """
    label, side = dit.one_label(network), network.grid[0]
    if tuple(network.grid) != (side, side):
        raise LayoutError(f"this ENAT has tokens on {tuple(network.grid)}: those of the published model form a square")
    return {
        "input_size": side,
        "hidden_size": network.width,
        "num_heads": network.heads,
        "mlp_ratio": network.mlp_ratio,
        "codebook_size": network.vocabulary,
        "num_classes": network.classes[label],
        "class_dropout_prob": 0.1 if network.label_null else 0.0,
        "args": {"enc_dec": (network.depth, network.decoder_depth)},
        "label": label,
    }


def table(config: Mapping[str, Any]) -> Table:
    """The rows that belong to the arguments of the published `DiT`."""
    depth, decoder_depth = config["args"]["enc_dec"]
    rows: list[Row] = [
        Row("x_embedder.word_embeddings.weight", "words"),
        Row("x_embedder.position_embeddings.weight", "places"),
        *_norm("x_embedder.LayerNorm", "norm_in"),
        dit.label_table("y_embedder.embedding_table.weight", config),
        *_norm("prev_proj.norm", "reuse/norm"),
        *linear("prev_proj.mlp.fc1", "reuse/mlp/fc1"),
        *linear("prev_proj.mlp.fc2", "reuse/mlp/fc2"),
        *_norm("norm", "norm_out"),
        *linear("mlm_layer.fc", "head/fc"),
        *_norm("mlm_layer.ln", "head/norm"),
        Row("mlm_layer.bias", "head/bias", _FLAT),
    ]
    for i in range(depth + decoder_depth):  # one list there, two stacks here
        rows += _block(f"blocks.{i}", f"blocks_{i}" if i < depth else f"decoder_blocks_{i - depth}")
    width = config["hidden_size"]
    return [*rows, *(_unused(name, width) for name in UNUSED)]


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")]


def _block(source: str, target: str) -> list[Row]:
    rows = linear(f"{source}.adaLN_modulation.1", f"{target}/modulation")
    rows += linear(f"{source}.attn.kv.A", f"{target}/attn/context_kv", parts(2))
    rows += linear(f"{source}.attn.kv.B", f"{target}/attn/kv", parts(2))
    for layer in ("attn.q", "attn.proj", "mlp.fc1", "mlp.fc2"):
        rows += linear(f"{source}.{layer}", f"{target}/{layer.replace('.', '/')}")
    return rows


def _unused(name: str, width: int) -> Fixed:
    hidden, last = REUSE_RATIO * width, name.startswith("prev_embedder.fc2")
    weight = (width, hidden) if last else (hidden, width)
    shape = weight[:1] if name.endswith("bias") else weight
    return Fixed(name, lambda: np.zeros(shape, np.float32), checked=False)

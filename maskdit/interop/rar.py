"""Published RAR weights (bytedance/1d-tokenizer, `modeling/rar.py`)."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.dit import LABEL, one_label
from maskdit.interop.rules import LayoutError, Row, Table, flatten, linear, parts
from maskdit.networks.rar import RAR

SPARE_POSITIONS, SPARE_STEPS = 1024, 100
"""Rows of the published tables beyond the number of codes; they are no arguments."""
_TABLE = flatten((0, 1, 2), (1, -1))
"""A table `[1, N, D]` as `[N, D]`."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that published arguments describe.

    Args:
      config: `codebook_size`, and the arguments below `generator`; `label` beside them gives our name of the label,
        else `maskdit.interop.dit.LABEL`, and `grid` the codes along each axis, else a square where the number of codes
        is one.
    """
    generator = config["generator"]
    length = generator["image_seq_len"]
    side = math.isqrt(length)
    return spec(
        RAR,
        vocabulary=config["codebook_size"],
        grid=tuple(config.get("grid") or ((side, side) if side**2 == length else (length,))),
        width=generator["hidden_size"],
        depth=generator["num_hidden_layers"],
        heads=generator["num_attention_heads"],
        hidden=generator["intermediate_size"],
        classes={config.get("label", LABEL): generator["condition_num_classes"]},
        dropout=generator["dropout"],
        attention_dropout=generator["attn_drop"],
        spare_positions=SPARE_POSITIONS,
        spare_steps=SPARE_STEPS,
    )


def to_reference(network: RAR) -> dict[str, Any]:
    """The published arguments of a network of ours, with `label` and `grid`: the inverse of `from_reference`.

    Raises:
      LayoutError: where it has no label or several, or tables of other lengths.
    """
    label = one_label(network)
    spare = (network.spare_positions, network.spare_steps)
    if spare != (SPARE_POSITIONS, SPARE_STEPS):
        raise LayoutError(
            f"this RAR has spare_positions={spare[0]} and spare_steps={spare[1]}: the published model has "
            f"{SPARE_POSITIONS} and {SPARE_STEPS}"
        )
    return {
        "codebook_size": network.vocabulary,
        "label": label,
        "grid": tuple(network.grid),
        "generator": {
            "hidden_size": network.width,
            "num_hidden_layers": network.depth,
            "num_attention_heads": network.heads,
            "intermediate_size": network.hidden,
            "dropout": network.dropout,
            "attn_drop": network.attention_dropout,
            "image_seq_len": network.layout.tokens,
            "condition_num_classes": network.classes[label],
        },
    }


def table(config: Mapping[str, Any]) -> Table:
    """The rows that belong to published arguments, which are the same for all."""
    del config
    block, ours = "blocks.{i}", "blocks_{i}"
    rows = [
        Row("cls_token", "cls_token", _TABLE),
        Row("pos_embed", "positions", _TABLE),
        Row("target_aware_pos_embed", "target_positions", _TABLE),
        Row("timesteps_embeddings", "steps", _TABLE),
        Row("embeddings.weight", "embed"),  # codes, the mask, classes, no class
        *linear(f"{block}.attn.qkv", f"{ours}/attn/qkv", parts(3)),
        *linear(f"{block}.attn.proj", f"{ours}/attn/proj"),
        *linear(f"{block}.mlp.fc1", f"{ours}/fc1"),
        *linear(f"{block}.mlp.fc2", f"{ours}/fc2"),
        *linear(f"{block}.adaLN_modulation.1", f"{ours}/modulation", parts(6)),
        *linear("adaln_before_head.adaLN_modulation.1", "final_modulation", parts(2)),
        *linear("lm_head", "head"),
    ]
    for name in ("norm1", "norm2", "attn.q_norm", "attn.k_norm"):
        target = f"{ours}/{name.replace('.', '/')}"
        rows += [Row(f"{block}.{name}.weight", f"{target}/scale"), Row(f"{block}.{name}.bias", f"{target}/bias")]
    return rows

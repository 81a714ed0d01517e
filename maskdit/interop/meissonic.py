"""Meissonic's published weights: the folder `transformer` of MeissonFlow/Meissonic.

Source: viiika/Meissonic `src/transformer.py` (Transformer2DModel), with blocks of diffusers.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop.joint_block import joint_rows, single_rows
from maskdit.interop.rules import POINTWISE, LayoutError, Op, Row, Table, flatten, linear
from maskdit.networks.meissonic import MICRO, STRIDE, Meissonic

DEFAULTS: Mapping[str, Any] = {
    "patch_size": 1,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
    "vocab_size": 8256,
    "codebook_size": 8192,
    "downsample": False,
    "upsample": False,
}
"""Of the published code, where a configuration leaves an argument out; `in_channels` says nothing there."""
HELD = tuple(DEFAULTS)
"""Entries of the configuration that say what the weights are for."""
PIXELS, AESTHETIC = 16, 6.0
"""Pixels of a code along a side with the published tokenizer, and the score that the published sampler asks for."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that published arguments describe.

    Args:
      config: `transformer`, the arguments of `Transformer2DModel`; `grid`, rows and columns of codes; `scalars`, the
        values of the micro-conditions where nothing else is given, by default those of a whole image of that grid.

    Raises:
      LayoutError: for a variant that `Meissonic` does not have.
    """
    model = {**DEFAULTS, **config["transformer"]}
    width, rows = model["num_attention_heads"] * model["attention_head_dim"], model["vocab_size"]
    _require(model, "patch_size", 1)
    _require(model, "guidance_embeds", False)
    _require(model, "pooled_projection_dim", width)
    _require(model, "upsample", model["downsample"])
    if rows <= model["codebook_size"]:
        raise LayoutError(f"vocab_size={rows} leaves no row for the mask behind codebook_size={model['codebook_size']}")
    height, breadth = (float(PIXELS * side) for side in config["grid"])
    given = config.get("scalars") or dict(zip(MICRO, (breadth, height, 0.0, 0.0, AESTHETIC), strict=True))
    return spec(
        Meissonic,
        vocabulary=model["codebook_size"],
        grid=tuple(config["grid"]),
        width=width,
        depth=model["num_layers"],
        single_depth=model["num_single_layers"],
        heads=model["num_attention_heads"],
        text_width=model["joint_attention_dim"],
        pooled_width=model["pooled_projection_dim"],
        rope=tuple(model["axes_dims_rope"]),
        halved=model["downsample"],
        spare=rows - model["codebook_size"] - 1,
        scalars=dict(given),
    )


def to_reference(network: Meissonic) -> dict[str, Any]:
    """The arguments of `from_reference` that a network of ours has: its inverse.

    Raises:
      LayoutError: where the published model has no such part.
    """
    if network.classes:
        raise LayoutError(
            f"this Meissonic has labels ({', '.join(network.classes)}): the published model has a text only"
        )
    if network.pooled_width != network.width:
        raise LayoutError(
            f"this Meissonic reads whole texts of {network.pooled_width} numbers at width={network.width}: the two are "
            "equal in the published model"
        )
    model = {
        "patch_size": 1,
        "num_layers": network.depth,
        "num_single_layers": network.single_depth,
        "attention_head_dim": network.width // network.heads,
        "num_attention_heads": network.heads,
        "joint_attention_dim": network.text_width,
        "pooled_projection_dim": network.pooled_width,
        "guidance_embeds": False,
        "axes_dims_rope": list(network.rope),
        "vocab_size": network.vocabulary + network.spare + 1,
        "codebook_size": network.vocabulary,
        "downsample": network.halved,
        "upsample": network.halved,
    }
    return {"grid": list(network.grid), "transformer": model, "scalars": dict(network.scalars)}


def to_config(network: Meissonic) -> dict[str, Any]:
    """The `config.json` that lies beside the weights."""
    return {"_class_name": "Transformer2DModel", **to_reference(network)["transformer"]}


def _require(config: Mapping[str, Any], key: str, value: Any) -> None:
    if config[key] != value:
        raise LayoutError(
            f"{key}={config[key]!r} in the published configuration: Meissonic here has only {key}={value!r}"
        )


_GROWN = Op(
    lambda x: x.transpose(0, 2, 3, 1).reshape(x.shape[0], -1),
    lambda x: x.reshape(x.shape[0], STRIDE, STRIDE, -1).transpose(0, 3, 1, 2),
)
"""The weight of a transposed convolution `[in, out, 2, 2]` as the kernel `[in, 2 * 2 * out]` of patches."""


def table(config: Mapping[str, Any]) -> Table:
    """Rows for the published names; any sizes."""
    del config
    rows: list[Row] = [Row("embed.embeddings.weight", "embedding")]
    for theirs, ours in (
        ("embed.layer_norm", "embed_norm"),
        ("down_block.downsample.norm", "down_norm"),
        ("project_to_hidden_norm", "in_norm"),
        ("encoder_proj_layer_norm", "text_norm"),
        ("project_from_hidden_norm", "out_norm"),
        ("up_block.upsample.norm", "up_norm"),
        ("mlm_layer.layer_norm", "head_norm"),
    ):
        rows.append(Row(f"{theirs}.weight", f"{ours}/scale"))
    for theirs, ours, op in (
        ("embed.conv", "embed", POINTWISE),
        ("down_block.downsample.conv", "down", flatten((2, 3, 1, 0), (STRIDE, STRIDE, -1))),
        ("up_block.upsample.conv", "up", _GROWN),
        ("mlm_layer.conv1", "head", POINTWISE),
        ("mlm_layer.conv2", "logits", POINTWISE),
    ):
        rows.append(Row(f"{theirs}.weight", f"{ours}/kernel", op))
    for theirs, ours in (
        ("project_to_hidden", "in"),
        ("project_from_hidden", "out"),
        ("context_embedder", "text_embed"),
        ("cond_embed.linear_1", "micro_embed/fc1"),
        ("cond_embed.linear_2", "micro_embed/fc2"),
        ("time_text_embed.timestep_embedder.linear_1", "time_embed/fc1"),
        ("time_text_embed.timestep_embedder.linear_2", "time_embed/fc2"),
        ("time_text_embed.text_embedder.linear_1", "pooled_embed/fc1"),
        ("time_text_embed.text_embedder.linear_2", "pooled_embed/fc2"),
    ):
        rows += linear(theirs, ours)
    rows += joint_rows("transformer_blocks.{i}", "joint_{i}")
    return rows + single_rows("single_transformer_blocks.{i}", "single_{i}")

"""Published DINOv2 weights (facebookresearch/dinov2, `dinov2.models.vision_transformer.DinoVisionTransformer`)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.encoders.dinov2 import DINOv2
from maskdit.interop.rules import LayoutError, Op, Row, Table, flatten, linear, parts

_ROWS = Op(lambda x: x.reshape(x.shape[1:]), lambda x: x.reshape(1, *x.shape))
"""Tokens `[1, N, D]` as `[N, D]`."""
_MLPS = {"mlp": "gelu", "swiglufused": "swiglu", "swiglu": "swiglu"}
"""Published names of the perceptrons, of which the last two are one, and ours."""
_ONLY: dict[str, Any] = {"in_chans": 3, "ffn_bias": True, "proj_bias": True, "block_chunks": 0}
"""Arguments that have one value in all published weights."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that the arguments of `DinoVisionTransformer` describe.

    Args:
      config: the published arguments. Those of `_ONLY` must be as in the published weights where they are given.

    Raises:
      LayoutError: for a variant that `DINOv2` does not have.
    """
    for key, value in _ONLY.items():
        if config.get(key, value) != value:
            raise LayoutError(f"{key}={config[key]!r} in the published configuration: this DINOv2 has {key}={value!r}")
    mlp = config.get("ffn_layer", "mlp")
    if mlp not in _MLPS:
        raise LayoutError(f"ffn_layer={mlp!r} in the published configuration: this DINOv2 has {', '.join(_MLPS)}")
    if config["embed_dim"] % config["num_heads"]:
        raise LayoutError(f"embed_dim={config['embed_dim']} does not divide into num_heads={config['num_heads']}")
    patch = _side(config, "patch_size")
    return spec(
        DINOv2,
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp=_MLPS[mlp],
        patch=patch,
        registers=config.get("num_register_tokens", 0),
        table_size=_side(config, "img_size") // patch * patch,  # what is beyond whole patches has no place
        antialias=config.get("interpolate_antialias", False),
        offset=float(config.get("interpolate_offset", 0.1) or 0),
        layer_scale=float(config["init_values"]) if config.get("init_values") else None,
        mlp_ratio=float(config.get("mlp_ratio", 4.0)),
        qkv_bias=config.get("qkv_bias", True),
    )


def _side(config: Mapping[str, Any], key: str) -> int:
    """A side in pixels, which the published code also takes as height and width."""
    sides = [config[key]] if isinstance(config[key], int) else list(config[key])
    if len(set(sides)) != 1:
        raise LayoutError(f"{key}={config[key]!r} in the published configuration: this DINOv2 has squares")
    return sides[0]


def to_reference(network: DINOv2) -> dict[str, Any]:
    """The published arguments that a network of ours has: the inverse of `from_reference`."""
    return {
        **_ONLY,
        "embed_dim": network.width,
        "depth": network.depth,
        "num_heads": network.heads,
        "ffn_layer": next(theirs for theirs, ours in _MLPS.items() if ours == network.mlp),
        "patch_size": network.patch,
        "num_register_tokens": network.registers,
        "img_size": network.table_size,
        "interpolate_antialias": network.antialias,
        "interpolate_offset": network.offset,
        "init_values": network.layer_scale,
        "mlp_ratio": network.mlp_ratio,
        "qkv_bias": network.qkv_bias,
    }


def table(config: Mapping[str, Any]) -> Table:
    """The rows that belong to the published arguments."""
    side = _side(config, "patch_size")
    rows = [
        Row("cls_token", "class_token", _ROWS),
        Row("pos_embed", "positions", _ROWS),
        Row("register_tokens", "register_tokens", _ROWS),
        Row("mask_token", "mask_token"),
        *linear("patch_embed.proj", "patch_embed", flatten((2, 3, 1, 0), (side, side, 3))),
        *_norm("norm", "norm"),
    ]
    source, target = "blocks.{i}", "blocks_{i}"
    for n in (1, 2):
        rows += _norm(f"{source}.norm{n}", f"{target}/norm{n}")
        rows.append(Row(f"{source}.ls{n}.gamma", f"{target}/scale{n}"))
    rows += linear(f"{source}.attn.qkv", f"{target}/attn/qkv", parts(3))
    rows += linear(f"{source}.attn.proj", f"{target}/attn/proj")
    if _MLPS[config.get("ffn_layer", "mlp")] == "swiglu":
        rows += linear(f"{source}.mlp.w12", f"{target}/mlp/fc1", parts(2))
        rows += linear(f"{source}.mlp.w3", f"{target}/mlp/fc2")
    else:
        rows += linear(f"{source}.mlp.fc1", f"{target}/mlp/fc1") + linear(f"{source}.mlp.fc2", f"{target}/mlp/fc2")
    return rows


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")]

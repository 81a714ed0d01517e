"""Published MaskDiT weights (Anima-Lab/MaskDiT, `models.maskdit.EDMPrecond`)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.interop import dit
from maskdit.interop.dit import LABEL
from maskdit.interop.rules import TRANSPOSE, Fixed, LayoutError, Op, Row, Table, linear
from maskdit.networks.maskdit import MaskDiT

WITHOUT_BATCH = Op(lambda x: x.reshape(x.shape[-1]), lambda x: x.reshape(1, 1, -1))
"""A token `[1, 1, D]` as `[D]`."""


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that the arguments of the published `EDMPrecond` describe.

    The published code fixes the decoder at width 512, depth 8 and 16 heads; `decoder_hidden_size`, `decoder_depth` and
    `decoder_num_heads` replace these where given. `label` beside the arguments gives our name of the label, else
    `LABEL`, and `position_grid` the grid that the tables of places are stretched from.

    Raises:
      LayoutError: for the class tokens and outside features of the published code, which `MaskDiT` does not have.
    """
    for key in ("pad_cls_token", "direct_cls_token", "ext_feature_dim", "use_encoder_feat"):
        if config.get(key):
            raise LayoutError(f"{key}={config[key]!r} in the published configuration: MaskDiT has no such part")
    return spec(
        MaskDiT,
        input_size=config["img_resolution"],
        patch=config["patch_size"],
        channels=config["img_channels"],
        width=config["hidden_size"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        decoder_width=_decoder_width(config),
        decoder_depth=config.get("decoder_depth", 8),
        decoder_heads=config.get("decoder_num_heads", 16),
        use_decoder=config["use_decoder"],
        mask_token=config.get("mae_loss_coef_at_construction", config["mae_loss_coef"]) > 0,
        classes={config.get("label", LABEL): config["num_classes"]} if config["num_classes"] else {},
        learned_variance=config.get("learn_sigma", False),
        position_grid=config.get("position_grid"),
    )


def to_reference(network: MaskDiT) -> dict[str, Any]:
    """The arguments of the published `EDMPrecond` that a network of ours has, with `label` and `position_grid`.

    The inverse of `from_reference`. Stretched places are no argument there, but the tables that the weights hold.

    Raises:
      LayoutError: where the published model has no such part: several labels.
    """
    label = {"label": dit.one_label(network)} if network.classes else {}
    return {
        "img_resolution": network.input_size,
        "img_channels": network.channels,
        "num_classes": network.classes[label["label"]] if label else 0,
        "depth": network.depth,
        "hidden_size": network.width,
        "patch_size": network.patch,
        "num_heads": network.heads,
        "mlp_ratio": network.mlp_ratio,
        "decoder_hidden_size": network.decoder_width,
        "decoder_depth": network.decoder_depth,
        "decoder_num_heads": network.decoder_heads,
        "use_decoder": network.use_decoder,
        "mae_loss_coef": 0.1 if network.mask_token else 0.0,
        "learn_sigma": network.learned_variance,
        "position_grid": network.position_grid,
        **label,
    }


def table(config: Mapping[str, Any]) -> Table:
    """The rows that belong to the arguments of the published `EDMPrecond`."""
    side, span = config["img_resolution"] // config["patch_size"], config.get("position_grid")
    rows: list[Row | Fixed] = [
        dit.places("model.pos_embed", config["hidden_size"], side, span),
        # a bias-free layer over one-hot labels
        Row(
            "model.y_embedder.embedding_table.weight",
            f"label_embed/{config.get('label', LABEL)}",
            TRANSPOSE,
            classes=(1, 0),
        ),
        *linear("model.x_embedder.proj", "patch_embed", dit.patch_kernel(config["patch_size"])),
        *dit.times("model.t_embedder", "time_embed"),
        *dit.blocks("model.blocks", "blocks"),
        *dit.head("model.final_layer", "final"),
    ]
    if config["use_decoder"]:
        rows += [
            dit.places("model.decoder_pos_embed", _decoder_width(config), side, span),
            Row("model.mask_token", "mask_token", WITHOUT_BATCH),
            *dit.blocks("model.decoder_blocks", "decoder_blocks"),
            *dit.head("model.decoder_layer", "decoder_embed"),
        ]
    return rows


def _decoder_width(config: Mapping[str, Any]) -> int:
    return config.get("decoder_hidden_size", 512)

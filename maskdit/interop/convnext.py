"""Published ConvNeXt classifiers, in the names of torchvision (`torchvision/models/convnext.py`)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit.config import spec
from maskdit.encoders.convnext import ConvNeXt
from maskdit.interop.rules import CONV, LayoutError, Op, Row, Table, linear

_OF_CHANNELS = Op(lambda x: x.reshape(-1), lambda x: x.reshape(-1, 1, 1))


def from_reference(config: Mapping[str, Any]) -> ConfigDict:
    """The spec of the network that torchvision's arguments describe.

    Args:
      config: `block_setting`, rows of (width, width of the next stage or None, blocks), and `num_classes`.

    Raises:
      LayoutError: for stages whose widths do not follow on each other.
    """
    stages = [tuple(stage) for stage in config["block_setting"]]
    if [stage[1] for stage in stages] != [*(stage[0] for stage in stages[1:]), None]:
        raise LayoutError(
            f"block_setting={config['block_setting']!r} in the published configuration: each row should name the width "
            "of the next one, and the last None"
        )
    return spec(
        ConvNeXt,
        channels=tuple(stage[0] for stage in stages),
        depths=tuple(stage[2] for stage in stages),
        classes=config.get("num_classes", 1000),
    )


def to_reference(network: ConvNeXt) -> dict[str, Any]:
    """Torchvision's arguments of one of ours: the inverse of `from_reference`."""
    following = [*network.channels[1:], None]
    stages = zip(network.channels, following, network.depths, strict=True)
    return {"block_setting": [list(stage) for stage in stages], "num_classes": network.classes}


def table(config: Mapping[str, Any]) -> Table:
    """Rows for torchvision's names: even places of its list are the stem and what halves the sides, odd ones stages."""
    rows: list[Row] = linear("features.0.0", "stem", CONV) + _norm("features.0.1", "stem_norm")
    for i in range(len(config["block_setting"])):
        if i:
            rows += _norm(f"features.{2 * i}.0", f"down_norm_{i - 1}")
            rows += linear(f"features.{2 * i}.1", f"down_{i - 1}", CONV)
        source, target = f"features.{2 * i + 1}.{{j}}", f"stage_{i}_{{j}}"
        rows.append(Row(f"{source}.layer_scale", f"{target}/scale", _OF_CHANNELS))
        rows += linear(f"{source}.block.0", f"{target}/depthwise", CONV)
        rows += _norm(f"{source}.block.2", f"{target}/norm")
        rows += linear(f"{source}.block.3", f"{target}/wide") + linear(f"{source}.block.5", f"{target}/narrow")
    return rows + _norm("classifier.0", "norm") + linear("classifier.2", "head")


def _norm(source: str, target: str) -> list[Row]:
    return [Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias")]

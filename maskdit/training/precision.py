"""Compute dtypes: what the config asks for, where the device has it."""

import logging

from ml_collections import ConfigDict

from maskdit.layers.platform import platform

_LOG = logging.getLogger(__name__)


def on_this_device(config: ConfigDict) -> ConfigDict:
    """The config with `dtype="bfloat16"` replaced by float32 on a CPU, where bfloat16 products are slow emulations."""
    config = config.copy_and_resolve_references()
    if platform() == "cpu" and _replace(config):
        _LOG.info("this CPU computes in float32, not in bfloat16 as the config says")
    return config


def _replace(node: ConfigDict) -> bool:
    changed = False
    for key in list(node):
        value = node[key]
        if isinstance(value, ConfigDict):
            changed |= _replace(value)
        elif key == "dtype" and value == "bfloat16":
            node[key], changed = "float32", True
    return changed

"""Data by name: a config's, or a folder of images."""

import os

from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.data.array_record import SUFFIX, ArrayRecord
from maskdit.data.folder import Folder
from maskdit.data.loader import Loader
from maskdit.data.source import DataError


def is_folder(data: str) -> bool:
    """Whether a name is that of a folder, here or in a bucket, and not of a config."""
    return "://" in data or os.path.isdir(data)


def named(data: str, size: int | None) -> ConfigDict:
    """A config whose `data` is the spec of a loader.

    Args:
      data: a config (`NAME[:variant]` or a file), or a folder of images or ArrayRecord shards.
      size: side of the images of a folder; those of a config have the config's.

    Raises:
      DataError: for a folder without a size, and a config without data.
      ConfigError: for a config that cannot be read.
    """
    if not is_folder(data):
        config = configs.load(data)
        if config.get("data") is None:
            raise DataError(f"the config {data} has no data")
        return config
    if size is None:
        raise DataError(f"{data} is a folder, whose images may be of any size: give --size, that of the squares to cut")
    sharded = os.path.isdir(data) and any(name.endswith(SUFFIX) for name in os.listdir(data))
    source = configs.spec(ArrayRecord if sharded else Folder, path=data)
    return ConfigDict({"data": configs.spec(Loader, source=source, size=size)})

"""Data by name."""

import pytest

from maskdit import config
from maskdit.config import ConfigError
from maskdit.data.array_record import ArrayRecord
from maskdit.data.folder import Folder
from maskdit.data.named import is_folder, named
from maskdit.data.source import DataError
from tests.encoded import write_pictures


def test_a_folder_of_images_becomes_squares_of_the_size_asked_for(tmp_path):
    folder = write_pictures(tmp_path / "pictures", count=3, size=16)
    made = config.build(named(folder, 8).data)
    assert isinstance(made.source, Folder) and len(made.records) == 3
    with made.once(3, range(3)) as batches:
        assert next(batches)["image"].shape == (3, 8, 8, 3)
    with pytest.raises(DataError, match="is a folder, whose images may be of any size: give --size"):
        named(folder, None)


def test_a_folder_with_shards_is_read_as_such(tmp_path):
    (tmp_path / "a.array_record").write_bytes(b"")
    assert named(str(tmp_path), 8).data.source.target == config.spec(ArrayRecord, path="").target


def test_a_config_keeps_its_own_size(tmp_path):
    assert named("maskdit_emoji:smoke", 8).data.size == 64
    with pytest.raises(ConfigError, match="nowhere"):
        named("nowhere", 8)
    assert is_folder("gs://bucket/pictures") and is_folder(str(tmp_path)) and not is_folder("maskdit_emoji:smoke")

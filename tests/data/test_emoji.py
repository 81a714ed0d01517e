import hashlib
import importlib.resources

import numpy as np
import pytest

from maskdit.data.emoji import Emoji
from maskdit.data.source import DataError, Source


@pytest.fixture(scope="module")
def splits():
    return Emoji("train", ("style", "group", "subgroup")), Emoji("val", ("style", "group", "subgroup"))


@pytest.fixture(scope="module")
def readme():
    return importlib.resources.files("maskdit.data.embedded").joinpath("README.md").read_text()


def test_every_picture_decodes_to_the_published_bytes(splits, readme):
    images = np.empty((5952, 64, 64, 3), np.uint8)
    for split in splits:
        for i, picture in enumerate(split.pictures):
            images[picture] = split[i]["image"]
    assert hashlib.sha256(images.tobytes()).hexdigest() in readme


def test_label_counts_are_those_of_the_readme(splits, readme):
    counts = {"style": np.zeros(4, int), "group": np.zeros(8, int), "subgroup": np.zeros(95, int)}
    for split in splits:
        for i in range(len(split)):
            record = split[i]
            for name in counts:
                counts[name][record[name]] += 1
    train, _ = splits
    for name in ("style", "group"):
        for label, count in zip(train.vocabulary[name], counts[name], strict=True):
            assert f"{label} {count:,}" in readme
    assert len(train.vocabulary["subgroup"]) == 95 and counts["subgroup"].min() > 0


def test_splits_share_no_emoji(splits):
    train, val = splits
    assert (len(train), len(val)) == (5432, 520)
    words = [{split.caption(i).split(" of ", 1)[1] for i in range(len(split))} for split in splits]
    assert not words[0] & words[1]


def test_labels_are_those_asked_for():
    assert list(Emoji(labels=("group", "style")).vocabulary) == ["group", "style"]
    assert Emoji(labels=()).vocabulary == {} and Emoji(labels=())[0].keys() == {"image"}
    assert isinstance(Emoji(), Source)


def test_description_names_picture_style_and_emoji():
    split = Emoji("val", ())
    picture = int(np.flatnonzero(split.pictures == 1092)[0])
    assert split.describe(picture).startswith("emoji picture 1092, an emoji of house with garden (building, country,")


@pytest.mark.parametrize(
    "kw", [{"split": "test"}, {"labels": ("colour",)}, {"labels": "style"}, {"labels": ("group",) * 2}]
)
def test_unknown_split_or_label(kw):
    with pytest.raises(DataError, match=r"train and val|out of \('style', 'group', 'subgroup'\)"):
        Emoji(**kw)


def test_licences_ship():
    text = importlib.resources.files("maskdit.data.embedded").joinpath("LICENSES.txt").read_text()
    assert all(words in text for words in ("Apache License", "MIT", "Unicode License V3", "Microsoft", "Google"))

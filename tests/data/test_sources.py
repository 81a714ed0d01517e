import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from maskdit.data.array_record import ArrayRecord, write_array_record
from maskdit.data.folder import Folder
from maskdit.data.loader import Loader
from maskdit.data.source import DataError, Source, UnreadableRecord


def picture(value, side=6):
    return np.full((side, side + 2, 3), value, np.uint8)


def encoded(value, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(picture(value)).save(out, kind)
    return out.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else encoded(data))


# ---- folder


def test_folder_of_classes(tmp_path):
    for split, name, value in [
        ("train", "b/1.png", 1),
        ("train", "b/0.PNG", 2),
        ("train", "a/x.bmp", 3),
        ("val", "c/y.png", 4),
    ]:
        write(tmp_path / split / name, encoded(value, "BMP" if name.endswith("bmp") else "PNG"))
    write(tmp_path / "val/b/z.png", 5)
    write(tmp_path / "train/b/notes.txt", b"not an image")
    write(tmp_path / "train/b/.hidden.png", b"")
    write(tmp_path / "other/d/w.png", 6)  # shares no class: another data set
    train, val = Folder(str(tmp_path), "train"), Folder(str(tmp_path), "val")
    assert train.vocabulary == val.vocabulary == {"label": ("a", "b", "c")}
    assert [(train[i]["image"][0, 0, 0], train[i]["label"]) for i in range(len(train))] == [(3, 0), (2, 1), (1, 1)]
    assert [(val[i]["image"][0, 0, 0], val[i]["label"]) for i in range(len(val))] == [(5, 1), (4, 2)]
    assert train.describe(1) == str(tmp_path / "train/b/0.PNG") and isinstance(train, Source)
    write(tmp_path / "train/a/later.png", 9)
    assert len(pickle.loads(pickle.dumps(train))) == 3  # a worker sees the list of its parent


def test_flat_folder_is_unlabelled(tmp_path):
    for name, kind in [("c.jpg", "JPEG"), ("a.webp", "WEBP"), ("b.jpeg", "JPEG")]:
        write(tmp_path / name, encoded(100, kind))
    source = Folder(str(tmp_path))
    assert source.vocabulary == {} and source[0].keys() == {"image"} and source[0]["image"].shape == (6, 8, 3)
    assert [source.describe(i)[-6:] for i in range(3)] == ["a.webp", "b.jpeg", "/c.jpg"]


def test_corrupt_file_is_replaced_and_named(tmp_path, caplog):
    for i in range(5):
        write(tmp_path / f"{i}.png", i)
    write(tmp_path / "2.png", encoded(2)[:30])
    (tmp_path / "5.png").symlink_to(tmp_path / "gone.png")
    source = Folder(str(tmp_path))
    with Loader(source, size=6, shuffle=False, flip=False).ordered(6) as stream:
        (batch,) = stream
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [0, 1, 3, 3, 4, 0])
    np.testing.assert_array_equal(batch["weight"], [1, 1, 0, 1, 1, 0])
    assert batch["replaced"] == 2
    assert f"{tmp_path / '2.png'}: not a readable image" in caplog.text
    assert f"{tmp_path / '5.png'}: No such file" in caplog.text


def test_folder_errors_say_what_to_do(tmp_path):
    def error(split="", path=tmp_path):
        with pytest.raises(DataError) as caught:
            len(Folder(str(path), split))
        return str(caught.value)

    assert error() == (
        f"'{tmp_path}' has no images: found no files, expected .jpg, .jpeg, .png, .webp, .bmp files, in class folders "
        "or directly; set path to such a folder"
    )
    assert "check the path" in error(path=tmp_path / "nowhere")
    for i in range(6):
        write(tmp_path / f"note{i}.txt", b"text")
    assert "found 6 other files (note0.txt, note1.txt, note2.txt, note3.txt, ...)" in error()
    write(tmp_path / "texts/a.txt", b"text")
    assert "found 7 other files" in error() and "in it and its 1 folders (texts)" in error()
    write(tmp_path / "set/train/cat/1.png", 1)
    write(tmp_path / "set/part/cat/1.png", 1)
    assert "the folders hold folders: set split to one of part, train" in error(path=tmp_path / "set")
    assert "has no split 'val'; its folders are part, train" in error("val", tmp_path / "set")
    write(tmp_path / "flat/train/1.png", 1)
    write(tmp_path / "flat/val/1.png", 1)
    assert "are splits, not classes: set split to one of train, val" in error(path=tmp_path / "flat")
    write(tmp_path / "set/train/1.png", 1)
    assert "has 1 images beside folders of images (cat)" in error("train", tmp_path / "set")


# ---- ArrayRecord


def records(count=7):
    return [{"image": picture(i), "kind": i % 2, "size": ("small", "large")[i // 4]} for i in range(count)]


LABELS = {"kind": ("even", "odd"), "size": ("small", "large")}


@pytest.mark.parametrize("encoding", ["png", "webp", "raw"])
def test_array_record_round_trip(tmp_path, encoding):
    path = str(tmp_path / "set")
    assert write_array_record(records(), path, shards=3, labels=LABELS, encoding=encoding) == 7
    source = ArrayRecord(path)
    assert source.vocabulary == LABELS and len(source) == 7
    assert [source[i]["image"][0, 0, 0] for i in range(7)] == [0, 3, 6, 1, 4, 2, 5]  # shard by shard
    for i in range(7):
        value = int(source[i]["image"][0, 0, 0])
        np.testing.assert_array_equal(source[i]["image"], picture(value))
        assert (source[i]["kind"], source[i]["size"]) == (value % 2, value // 4)
    assert [r["image"][0, 0, 0] for r in map(pickle.loads(pickle.dumps(source)).__getitem__, range(3))] == [0, 3, 6]
    part = ArrayRecord(f"{path}/data-00001-*", labels=("size",))
    assert len(part) == 2 and part[0].keys() == {"image", "size"} and ArrayRecord(path, ()).vocabulary == {}


def test_array_record_keeps_encoded_images(tmp_path):
    write_array_record([{"image": encoded(7, "JPEG")}], str(tmp_path))
    np.testing.assert_allclose(ArrayRecord(str(tmp_path))[0]["image"], picture(7), atol=1)


def test_array_record_damage_is_an_unreadable_record(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (7, 6, 8, 3), np.uint8)
    write_array_record([{"image": image} for image in noise], str(tmp_path), encoding="raw")
    (shard,) = tmp_path.glob("*.array_record")
    data = bytearray(shard.read_bytes())
    place = data.find(noise[3].tobytes())
    assert place > 0
    data[place : place + 4] = b"\xff" * 4
    shard.write_bytes(data)
    source = ArrayRecord(str(tmp_path))
    for i in (0, 1, 2, 4, 5, 6):
        np.testing.assert_array_equal(source[i]["image"], noise[i])
    with pytest.raises(UnreadableRecord, match=f"{tmp_path}, record 3: "):
        source[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 2}, "record 1: kind is 2, which is none of its 2 classes"),
        ({"size": "huge"}, "record 1: size is 'huge'"),
        ({"extra": 1}, r"record 1 has \['extra', 'image', 'kind', 'size'\], expected \['image', 'kind', 'size'\]"),
        ({"image": np.zeros((4, 4), np.uint8)}, r"record 1: .* got uint8 \[4, 4\]"),
        ({"image": np.zeros((4, 4, 3))}, r"record 1: .* got float64 \[4, 4, 3\]"),
    ],
)
def test_writing_a_record_that_does_not_fit(tmp_path, change, message):
    wrong = records(2)
    wrong[1] |= change
    with pytest.raises(DataError, match=message):
        write_array_record(wrong, str(tmp_path), labels=LABELS)
    with pytest.raises(DataError, match="writing was interrupted"):  # what was written is not taken for a whole
        len(ArrayRecord(str(tmp_path)))


def test_array_record_errors_say_what_to_do(tmp_path):
    path = str(tmp_path / "set")
    with pytest.raises(DataError, match=r"no \.array_record files match"):
        len(ArrayRecord(path))
    with pytest.raises(DataError, match="mount the bucket"):
        len(ArrayRecord("gs://bucket/set"))
    for kw, message in [({"shards": 0}, "shards must be"), ({"encoding": "gif"}, "'png', 'webp' or 'raw'")]:
        with pytest.raises(DataError, match=message):
            write_array_record(records(), path, labels=LABELS, **kw)
    with pytest.raises(DataError, match="cannot be called 'row'"):
        write_array_record([], path, labels={"row": ("a",)})
    with pytest.raises(DataError, match="no records to write"):
        write_array_record([], str(tmp_path / "empty"))
    write_array_record(records(), path, shards=2, labels=LABELS)
    with pytest.raises(DataError, match="write to another folder"):
        write_array_record(records(), path, labels=LABELS)
    with pytest.raises(DataError, match="has no label 'colour'; it has kind, size"):
        ArrayRecord(path, ("colour",))[0]
    (tmp_path / "set/data-00001-of-00002.array_record").unlink()
    with pytest.raises(DataError, match=r"hold 4 records, labels\.json says 7: some shards are missing"):
        len(ArrayRecord(path))
    (tmp_path / "set/labels.json").write_text(json.dumps({"labels": {}}))
    with pytest.raises(DataError, match="not an index of labels and records"):
        len(ArrayRecord(path))
    (tmp_path / "set/data-00000-of-00002.array_record").write_bytes(b"short")
    with pytest.raises(DataError, match="cannot be opened"):
        len(ArrayRecord(path))


# ---- TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # only the files on disk are known

        class Shades(tfds.core.GeneratorBasedBuilder):
            __module__ = "shades"  # as in a script of one's own
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["dark", "light"]),
                    "caption": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, _):
                return {"train": self._generate_examples(range(0, 200, 20)), "test": self._generate_examples(range(3))}

            def _generate_examples(self, values):
                for i, value in enumerate(values):
                    image = io.BytesIO(encoded(value))
                    yield i, {"image": image, "label": int(value >= 100), "caption": f"shade {value}"}

    path = tmp_path_factory.mktemp("tfds")
    Shades(data_dir=str(path), file_format="array_record").download_and_prepare()
    return str(path)


def test_tfds_without_tensorflow(tfds_dir):
    from maskdit.data.tfds import TFDS

    source = TFDS("shades", "train", tfds_dir)
    assert len(source) == 10 and source.vocabulary == {"label": ("dark", "light")} and isinstance(source, Source)
    values = []
    for i in range(10):
        record = pickle.loads(pickle.dumps(source))[i] if i == 0 else source[i]
        value = int(record["image"][0, 0, 0])
        np.testing.assert_array_equal(record["image"], picture(value))
        assert record["label"] == int(value >= 100) and record.keys() == {"image", "label"}
        values.append(value)
    assert sorted(values) == list(range(0, 200, 20))
    assert len(TFDS("shades:1.0.0", "train[:30%]", tfds_dir)) == 3 and len(TFDS("shades", "train+test", tfds_dir)) == 13
    assert TFDS("shades", "test", tfds_dir, labels=())[0].keys() == {"image"}
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "val"}, "'shades' has no split 'val'; it has .*train"),
        ({"split": "train[:x]"}, "'shades' cannot give split"),
        ({"name": "shade"}, "TFDS has no data set 'shade', and none is prepared in .*check name and data_dir"),
        (
            {"name": "cifar10"},
            "'cifar10' is not prepared in .*run 'tfds build cifar10 --file_format=array_record --data_dir=",
        ),
        ({"image": "picture"}, "has no Image feature 'picture'; it has image: set image"),
        ({"labels": ("caption",)}, "has no ClassLabel feature 'caption'; it has label: set labels"),
    ],
)
def test_tfds_errors_say_what_to_do(tfds_dir, fields, message):
    from maskdit.data.tfds import TFDS

    with pytest.raises(DataError, match=message):
        len(TFDS(**{"name": "shades", "split": "train", "data_dir": tfds_dir} | fields))

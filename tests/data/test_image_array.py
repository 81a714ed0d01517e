"""Reading the images of any generator, and writing array files as a stream."""

import io
import zipfile

import numpy as np
import pytest
from etils import epath
from PIL import Image

from maskdit.data.image_array import Pictures, write_npz
from maskdit.data.source import DataError

SHAPE = (11, 4, 5, 3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture(scope="module")
def stored(images, tmp_path_factory):
    """The same images in each form that can be read."""
    folder = tmp_path_factory.mktemp("stored")
    write_npz(epath.Path(folder / "ours.npz"), SHAPE, [images[:7], images[7:]], {"label": ["a", "b"] * 5 + ["c"]})
    np.savez(folder / "stored.npz", mu=np.zeros(3), arr_0=images, other=images[:2])
    np.savez_compressed(folder / "packed.npz", samples=images, labels=np.arange(11))
    np.save(folder / "plain.npy", images)
    for index, image in enumerate(images):
        path = folder / "files" / ("b" if index > 4 else "a/inside") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "files" / ".hidden.png").write_text("")
    (folder / "files" / "readme.txt").write_text("")
    return folder


ARRAYS = ("ours.npz", "stored.npz", "packed.npz", "plain.npy")


@pytest.mark.parametrize("name", [*ARRAYS, "files"])
def test_images_come_in_order_from_any_of_them_on(stored, images, name):
    found = Pictures(str(stored / name))
    assert len(found) == 11 and found.shape == SHAPE
    for start in (0, 3, 10, 11):
        batches = list(found.batches(4, start))
        assert [len(batch) for batch in batches] == [4] * ((11 - start) // 4) + [(11 - start) % 4] * (
            (11 - start) % 4 > 0
        )
        np.testing.assert_array_equal(np.concatenate([images[:0], *batches]), images[start:])


def test_checksums_tell_content_and_not_packing(stored, images, tmp_path):
    assert len({Pictures(str(stored / name)).checksum for name in ARRAYS}) == 1
    other = images.copy()
    other[10, 3, 4, 2] ^= 1
    np.save(tmp_path / "other.npy", other)
    np.save(tmp_path / "turned.npy", images.reshape(11, 5, 4, 3))
    checksums = [Pictures(str(tmp_path / name)).checksum for name in ("other.npy", "turned.npy")]
    assert len({*checksums, Pictures(str(stored / "plain.npy")).checksum}) == 3


def test_checksum_of_a_folder_tells_names_and_content(tmp_path):
    def checksum():
        return Pictures(str(tmp_path)).checksum

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    Image.new("RGB", (2, 2), "red").save(tmp_path / "b.png")
    before = checksum()
    assert checksum() == before
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert checksum() != before
    (tmp_path / "c.png").rename(tmp_path / "b.png")
    Image.new("RGB", (2, 2), "blue").save(tmp_path / "b.png")
    assert checksum() != before


def test_what_we_write_is_what_others_read(stored, images, tmp_path):
    with np.load(stored / "ours.npz") as found:
        np.testing.assert_array_equal(found["arr_0"], images)
        assert list(found["label"]) == ["a", "b"] * 5 + ["c"]
    with zipfile.ZipFile(stored / "ours.npz") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    write_npz(epath.Path(tmp_path / "again.npz"), SHAPE, iter(images[:, None]), {"label": ["a", "b"] * 5 + ["c"]})
    assert (tmp_path / "again.npz").read_bytes() == (stored / "ours.npz").read_bytes()
    for some, message in (([images[:3]], "expected 11 images, got 3"), ([images / 1.0], "got float64")):
        with pytest.raises(ValueError, match=message):
            write_npz(epath.Path(tmp_path / "bad.npz"), SHAPE, some)


def test_files_of_any_mode_become_colours(tmp_path):
    Image.new("L", (2, 2), 7).save(tmp_path / "a.png")
    Image.new("P", (2, 2), 0).save(tmp_path / "b.png")
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "c.webp", lossless=True)
    (found,) = Pictures(str(tmp_path)).batches(8)
    np.testing.assert_array_equal(found[[0, 2], 0, 0], [[7, 7, 7], [255, 255, 255]])


def floats(low, high, broken=()):
    found = np.linspace(low, high, 70 * 12, dtype=np.float32).reshape(70, 2, 2, 3)
    for index in broken:
        found[index, 1, 0, 2] = np.nan
    return found


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": floats(-1, 1, [66, 69])}, "2 of 70 images hold NaN or infinite numbers, the first is image 66"),
        ({"arr_0": floats(-1, 1)}, r"from -1 to 1; .*np.rint\(127.5 \* images \+ 127.5\)"),
        ({"arr_0": floats(0, 1).astype(np.float16)}, r"float16 .*np.rint\(255 \* images\)"),
        ({"arr_0": floats(0, 255)}, r"np.rint\(images\)"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.int64)}, "int64 .* not uint8"),
        ({"arr_0": np.zeros((2, 4, 4, 1), np.uint8)}, r"1 channels \(grey\)"),
        ({"arr_0": np.zeros((2, 4, 4, 4), np.uint8)}, r"4 channels \(transparency\)"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"transpose with \(0, 2, 3, 1\)"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "no images"),
        ({"arr_0": np.zeros((2, 0, 4, 3), np.uint8)}, "no pixels"),
        ({"arr_0": np.zeros((4, 4, 3), np.uint8)}, "3 axes"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))}, "Fortran"),
        ({"arr_0": np.array([None])}, "Python objects"),
        ({"mu": np.zeros(8), "sigma": np.zeros((8, 8))}, r"holds mu float64 \[8\], sigma .*: expected the images"),
        ({"a": np.zeros((2, 4, 4, 3), np.uint8), "b": np.zeros((2, 4, 4, 3), np.uint8)}, "only array of four axes"),
        ({}, "no arrays"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message):
        len(Pictures(str(tmp_path / "bad.npz")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npz", "there is no file"),
        ("none", "does not exist: images are"),
        ("text.txt", "is no such file: images are"),
        ("text.npz", "cannot be read as an array file"),
        ("cut.npz", "cannot be read as an array file"),
        ("cut.npy", "ends in image 10 of 11"),
        ("damaged.npz", "Bad CRC-32"),
        ("empty", "no images: found 1 other files"),
        ("sizes", r"\(width x height\): a.png is 4 x 2 and b.png 2 x 4"),
        ("broken", r"b.png: not a readable image"),
    ],
)
def test_faults_are_told_by_the_checksum(stored, tmp_path, name, message):
    whole = (stored / "ours.npz").read_bytes()
    for file in ("text.npz", "text.txt"):
        (tmp_path / file).write_text("no array")
    (tmp_path / "cut.npz").write_bytes(whole[:-200])
    (tmp_path / "cut.npy").write_bytes((stored / "plain.npy").read_bytes()[:-7])
    (tmp_path / "damaged.npz").write_bytes(whole[:400] + bytes([whole[400] ^ 1]) + whole[401:])
    for folder in ("empty", "sizes", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    for folder in ("sizes", "broken"):
        Image.new("RGB", (4, 2)).save(tmp_path / folder / "a.png")
    Image.new("RGB", (2, 4)).save(tmp_path / "sizes" / "b.png")
    (tmp_path / "broken" / "b.png").write_text("no image")
    with pytest.raises(DataError, match=message):
        Pictures(str(tmp_path / name)).checksum  # noqa: B018


def test_a_file_of_another_size_or_cut_off_ends_reading(tmp_path):
    encoded = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(encoded, "PNG")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded.getvalue())
    (tmp_path / "c.png").write_bytes(encoded.getvalue()[:-3000])  # its header is whole
    batches = Pictures(str(tmp_path)).batches(2)
    assert next(batches).shape == (2, 64, 64, 3)
    with pytest.raises(DataError, match=r"c.png: not a readable image \(.*truncated"):
        next(batches)
    Image.new("RGB", (64, 32)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"a.png is 64 x 64 and c.png 64 x 32"):
        list(Pictures(str(tmp_path)).batches(2, 2))

import io

import numpy as np
import pytest
from PIL import Image

from maskdit.data.source import UnreadableRecord
from maskdit.data.transforms import centre_crop, decode, resize, to_rgb


def averaged(image, down, across):
    """Means of blocks of pixels; Pillow averages rows first, then columns, and rounds halves up after each."""
    height, width = image.shape[:2]
    rows = np.floor(image.reshape(height, width // across, across, 3).mean(axis=2) + 0.5)
    return np.floor(rows.reshape(height // down, down, width // across, 3).mean(axis=1) + 0.5)


def test_crop_of_exact_halves_is_the_mean_of_pixels():
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    np.testing.assert_array_equal(centre_crop(image, 8), averaged(averaged(image, 2, 2), 2, 2)[:, 2:10])


@pytest.mark.parametrize("shape", [(10, 10), (64, 17), (9, 300), (7, 5), (33, 65)])
def test_crop_gives_the_middle_for_any_shape(shape):
    height, width = shape
    rows, columns = np.meshgrid(np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij")
    image = np.stack([rows, columns, np.full(shape, 90)], axis=-1).round().astype(np.uint8)
    cropped = centre_crop(image, 8).astype(float)
    assert cropped.shape == (8, 8, 3) and (cropped[..., 2] == 90).all()
    assert abs(cropped[3:5, :, 0].mean() - 127.5) < 16 and abs(cropped[:, 3:5, 1].mean() - 127.5) < 16
    span = cropped[..., 1].max() - cropped[..., 1].min()
    assert span < 255 * min(1, height / width) + 12  # a wide image is cut, not squeezed


def test_crop_cuts_at_the_floor_of_the_margin():
    image = np.arange(8 * 11, dtype=np.uint8).reshape(8, 11, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(centre_crop(image, 8), image[:, 1:9])


def test_resize_averages_exact_factors_and_squeezes():
    image = np.random.default_rng(1).integers(0, 256, (24, 16, 3), np.uint8)
    np.testing.assert_array_equal(resize(image, 8), averaged(image, 3, 2))
    assert resize(image, 7).shape == (7, 7, 3)
    np.testing.assert_array_equal(resize(image[:16], 16), image[:16])


def test_every_mode_becomes_colour():
    grey = np.array([[0, 128], [255, 3]], np.uint8)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(grey)), expected)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(grey.astype(np.uint16) * 257)), expected)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(grey).convert("P")), expected)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(grey > 100)), np.where(expected > 100, 255, 0))
    alpha = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(alpha)), [[[10, 20, 30], [255, 255, 255]]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    out = io.BytesIO()
    palette.save(out, "PNG", transparency=1)
    np.testing.assert_array_equal(decode(out.getvalue(), "x"), [[[10, 20, 30], [255, 255, 255]]])


def test_broken_bytes_name_the_record():
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(out, "PNG")
    for data in (b"", b"text", out.getvalue()[:200], out.getvalue()[:60] + b"\0" * 3000):
        with pytest.raises(UnreadableRecord, match=r"cat\.png: not a readable image"):
            decode(data, "cat.png")

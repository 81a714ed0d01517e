"""Closed forms of PSNR and SSIM, and where the published definitions differ."""

import numpy as np
import pytest

from maskdit.evals import image_quality as quality

SSIM = {
    "torchmetrics": (quality.ssim_torchmetrics, 1.0, 0.0),
    "signed": (quality.ssim_signed, 2.0, -1.0),
    "skimage": (quality.ssim_skimage, 1.0, 0.0),
    "llamagen": (quality.ssim_llamagen, 2.0, 0.0),
    "wang": (quality.ssim_wang, 1.0, 0.0),
}
"""Function, range of values whose smallest is the third, with images in [0, 1] or [-1, 1]."""


def images(levels):
    """Images in [-1, 1] of numbers 0..255."""
    return np.asarray(levels, np.float32) / 127.5 - 1


def noise(seed=0, shape=(3, 20, 24, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape)


def test_every_level_survives_quantising():
    levels = np.arange(256).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(quality.quantised(images(levels)), levels)
    assert quality.quantised([[[[-3.0], [3.0]]]]).ravel().tolist() == [0, 255]


def test_an_error_of_one_level():
    given = noise() // 2
    one = 20 * np.log10(255)
    for function in (quality.psnr_uint8, quality.psnr_floored, quality.psnr_llamagen):
        np.testing.assert_allclose(function(images(given), images(given + 1)), np.full(3, one), rtol=1e-5)
    np.testing.assert_array_equal(quality.squared_error(images(given), images(given + 2)), [4, 4, 4])


def test_equal_images():
    given = images(noise())
    assert np.isinf(quality.psnr_uint8(given, given)).all()
    np.testing.assert_allclose(quality.psnr_floored(given, given), 100)
    for function, _, _ in SSIM.values():
        np.testing.assert_allclose(function(given, given), 1, atol=1e-6)


def test_only_llamagen_and_signed_see_what_quantising_takes_away():
    given = images(np.full((1, 12, 12, 3), 100))
    less = given + 0.3 / 127.5
    assert np.isinf(quality.psnr_uint8(less, given)).all()
    np.testing.assert_allclose(quality.psnr_llamagen(less, given), 20 * np.log10(255 / 0.3), rtol=1e-4)
    np.testing.assert_array_equal(quality.psnr_llamagen(given, less) > 100, [True])  # reconstructions are quantised
    np.testing.assert_allclose(quality.psnr_pooled(less, given), 20 * np.log10(255 / 0.3), rtol=1e-4)


def test_pooled_is_the_psnr_of_the_mean_error():
    given = noise() // 2
    other = given + np.arange(1, 4).reshape(3, 1, 1, 1)
    expected = 10 * np.log10(255**2 / np.mean([1, 4, 9]))
    assert quality.psnr_pooled(images(given), images(other)) == pytest.approx(expected, rel=1e-5)
    assert expected < quality.psnr_uint8(images(given), images(other)).mean()


@pytest.mark.parametrize("name", SSIM)
def test_flat_images_differ_in_their_means_alone(name):
    function, span, least = SSIM[name]
    a, b = (np.full((1, 12, 12, 3), level) for level in (51, 204))
    x, y = (level / 255 * (2 if least else 1) + least for level in (51, 204))
    constant = (0.01 * span) ** 2
    expected = (2 * x * y + constant) / (x * x + y * y + constant)
    np.testing.assert_allclose(function(images(a), images(b)), expected, rtol=1e-4)


@pytest.mark.parametrize("name", SSIM)
def test_each_image_counts_by_itself_and_both_ways(name):
    function = SSIM[name][0]
    given, other = images(noise(0)), images(noise(1))
    together = function(given, other)
    np.testing.assert_allclose(together[1:2], function(given[1:2], other[1:2]), rtol=1e-10)
    np.testing.assert_allclose(together, function(other, given), rtol=1e-4, atol=1e-6)
    mirrored = function(given[:, ::-1, ::-1], other[:, ::-1, ::-1])
    np.testing.assert_allclose(together, mirrored, rtol=1e-8)


def test_a_cropped_mean_does_not_see_the_border():
    """What happens in the outermost pixels reaches half a window; the whole mean and no other sees the pixel there."""
    given = noise(0, (1, 22, 22, 1))
    other = given.copy()
    other[:, 0, 0] = 255 - other[:, 0, 0]
    whole = quality.ssim_torchmetrics(images(given), images(other))
    cropped = quality.ssim_torchmetrics(images(given), images(other), crop=True)
    assert whole[0] < cropped[0] <= 1
    np.testing.assert_allclose(quality.ssim_wang(images(given), images(other)), cropped, rtol=1e-10)


def test_the_usual_window():
    window = quality.gaussian()
    assert len(window) == 11 and window.sum() == pytest.approx(1)
    assert window[5] / window[6] == pytest.approx(np.exp(0.5 / 1.5**2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: quality.psnr_uint8(x, x[:1]), r"of one shape, got \(3, 20, 24, 3\) and \(1, 20, 24, 3\)"),
        (lambda x: quality.ssim_wang(x[:, :5], x[:, :5]), "a window of 11 needs images of more than half of that"),
        (lambda x: quality.ssim_wang(x[:, :8], x[:, :8]), "are all border"),
        (lambda x: quality.ssim_skimage(x, x, window=4), "an odd number from 3 on, got 4"),
        (lambda x: quality.ssim_wang(x, x, sigma=0.0), "a positive number of pixels, got 0.0"),
    ],
)
def test_bad_images_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call(images(noise()))

"""Resizing rules against Pillow, where it is the reference, and against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskdit.encoders import resize
from maskdit.encoders.resize import RULES

BICUBIC = Image.Resampling.BICUBIC


def noise(height: int, width: int) -> np.ndarray:
    """Pixels that overshoot: half of them are black or white."""
    random = np.random.default_rng(height * width)
    extreme = 255 * random.integers(0, 2, (height, width, 3))
    values = np.where(random.random((height, width, 1)) < 0.5, extreme, random.integers(0, 256, (height, width, 3)))
    return values.astype(np.uint8)


def pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), BICUBIC))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((64, 64), (224, 224)),  # up
        ((256, 256), (224, 224)),  # a little down
        ((150, 150), (16, 16)),  # far down: more taps than are added in one pass
        ((50, 33), (50, 10)),  # one axis alone
        ((31, 64), (47, 20)),  # up and down
        ((5, 5), (40, 40)),  # fewer pixels than a kernel is wide
        ((32, 32), (32, 32)),
    ],
)
def test_pil_bicubic_is_pillows_bit_for_bit(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = noise(*before)
    ours = np.asarray(RULES["pil-bicubic"](image[None], after)[0])
    np.testing.assert_array_equal(ours, pillow(image, *after))


def test_pil_bicubic_takes_the_height_first_where_it_shrinks_much_more() -> None:
    image = noise(60, 21)
    ours = np.asarray(RULES["pil-bicubic"](image[None], (12, 30))[0])
    np.testing.assert_array_equal(ours, pillow(pillow(image, 12, 21), 12, 30))
    assert (ours != pillow(pillow(image, 60, 30), 12, 30)).any()


def test_pil_bicubic_rounds_and_clips_floats_first() -> None:
    image = noise(9, 9)
    shifted = image + np.where(image == 0, -3.0, 0.4)
    rules = RULES["pil-bicubic"]
    np.testing.assert_array_equal(rules(jnp.asarray(shifted[None], jnp.float32), (7, 7)), rules(image[None], (7, 7)))


@pytest.mark.parametrize(("before", "after"), [((40, 56), (64, 64)), ((60, 50), (48, 40))])
def test_clean_is_pillow_on_floats_and_clipped(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = noise(*before)
    channels = [Image.fromarray(image[..., i].astype(np.float32)) for i in range(3)]
    expected = np.stack([np.asarray(channel.resize(after[::-1], BICUBIC)) for channel in channels], -1)
    assert expected.min() < 0 and expected.max() > 255
    np.testing.assert_allclose(RULES["clean"](image[None], after)[0], expected.clip(0, 255), atol=2e-4)
    np.testing.assert_allclose(RULES["edm2"](image[None], after)[0], expected, atol=5e-4)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("tf1-bilinear", [0, 5, 10, 20, 30, 30]),  # places 0, 0.5, 1, ...
        ("torch-bilinear", [0, 2.5, 7.5, 15, 25, 30]),  # places -0.25, 0.25, 0.75, ...
    ],
)
def test_bilinear_places(rule: str, expected: list[float]) -> None:
    line = np.asarray([0, 10, 30], np.uint8).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(RULES[rule](line, (1, 6))[0, 0, :, 0], expected, atol=1e-5)
    np.testing.assert_allclose(RULES[rule](line.reshape(1, 3, 1, 1), (6, 1))[0, :, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_same_size_and_even_colour_stay(rule: str) -> None:
    image = noise(12, 10)[None]
    same = RULES[rule](image, (12, 10))
    assert same.dtype == jnp.float32
    np.testing.assert_array_equal(same, image)
    even = RULES[rule](np.full((1, 12, 10, 3), 201, np.uint8), (5, 17))
    np.testing.assert_allclose(even, 201, atol=1e-4)


@pytest.mark.parametrize("coefficient", [resize.PIL_CUBIC, resize.TORCH_CUBIC])
def test_cubic_taps_keep_lines_straight(coefficient: float) -> None:
    """Weights add up to one; with the coefficient -0.5 lines stay lines away from the edges (Keys 1981)."""
    taps = resize.cubic_taps(20, 50, coefficient=coefficient, antialias=False)
    np.testing.assert_allclose(taps.weights.sum(1), 1, atol=1e-12)
    line = (taps.weights * taps.places).sum(1)[8:-8]
    gap = np.abs(line - ((np.arange(50) + 0.5) * 20 / 50 - 0.5)[8:-8]).max()
    assert gap < 1e-9 if coefficient == resize.PIL_CUBIC else gap > 1e-2


def test_step_moves_the_places() -> None:
    """A step of its own: place i lies at `(i + 0.5) * step - 0.5`, whatever the sizes."""
    taps = resize.cubic_taps(20, 4, antialias=False, step=3.0)
    np.testing.assert_allclose((taps.weights * taps.places).sum(1), [1, 4, 7, 10], atol=1e-9)


@pytest.mark.parametrize(("shape", "size"), [((4, 4, 3), (2, 2)), ((1, 4, 4, 3), (0, 2)), ((1, 0, 4, 3), (2, 2))])
def test_images_of_no_size_are_refused(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a height and a width of at least 1"):
        resize.edm2(jnp.zeros(shape), size)

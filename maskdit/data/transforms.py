"""Images on the host: decoding, fitting to a square, and which rows are mirrored. uint8 in, uint8 out."""

import io

import numpy as np
from PIL import Image

from maskdit.data.source import UnreadableRecord


def decode(data: bytes, name: str) -> np.ndarray:
    """Decodes a PNG, JPEG, WebP, BMP or other file that Pillow knows into uint8 `[H, W, 3]`.

    Args:
      data: the bytes of the file.
      name: the record, for the message.

    Raises:
      UnreadableRecord: for bytes that are no image, a truncated one, or one too large to be meant.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise UnreadableRecord(name, f"not a readable image ({_first_line(error)})") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """Colours of an image of any mode as uint8 `[H, W, 3]`.

    Grey becomes three equal channels, 16-bit grey keeps its upper 8 bits, transparency is laid over white. Orientation
    tags are not applied, as in torchvision and ADM.
    """
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        over = Image.new("RGBA", image.size, (255, 255, 255, 255))
        over.alpha_composite(image)
        image = over
    return np.asarray(image.convert("RGB"))


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of an image, `[H, W, 3]` -> `[size, size, 3]`, resampled as in ADM (Dhariwal & Nichol, 2021).

    Halved by averaging while the shorter side is at least twice `size`, then resized (bicubic) until it is `size`, then
    cut. FID statistics of ImageNet are made of images cut this way.
    """
    if image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale != 1:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture)[top : top + size, left : left + size]


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """The whole image as a square, `[H, W, 3]` -> `[size, size, 3]`; another aspect ratio is squeezed.

    Averages pixels where both sides are multiples of `size`, as in 64 -> 32, else bicubic.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    exact = height % size == 0 and width % size == 0
    method = Image.Resampling.BOX if exact else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((size, size), method))


def flips(seed: int, positions: np.ndarray) -> np.ndarray:
    """Which rows are mirrored: a fair coin for each position, a function of (seed, position) alone.

    Args:
      seed: of the run.
      positions: place of each row in the endless order of records, `step * batch + row`, `[b]`.

    Returns:
      bool `[b]`.
    """
    # the finaliser of SplitMix64 (Steele et al., 2014), once over the seed and once over seed and position
    with np.errstate(over="ignore"):
        start = _mix(np.asarray([seed], np.uint64))
        bits = _mix(start + np.asarray(positions).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (bits >> np.uint64(63)).astype(bool)


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return text if "BytesIO" not in text and text else "unknown format"

"""Resizing rules behind published scores, each as its tool computes it, on the device.

A rule is part of a metric: the same images under two rules have different Fréchet distances (Parmar et al. 2022,
arXiv 2104.11222). Images are `[B, H, W, C]`, uint8 or float, on the scale from 0 to 255, and come out as float32 on
that scale. Every rule works on one axis after the other and leaves an axis alone whose size stays: all of them are the
identity there.

  rule              who uses it                                                     rounded        clipped
  `tf1-bilinear`    the FID graph of 2015: ADM's evaluator, torch-fidelity; papers   no             no need
                    that report "FID by ADM's suite" (ADM, DiT, SiT, MAR, VAR)
  `torch-bilinear`  pytorch-fid (Seitzer), and the papers that name it               no             no need
  `pil-bicubic`     dgm-eval's FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675),      each axis      each axis
                    EDM2's `pil` mode
  `clean`           clean-fid (Parmar et al. 2022), dgm-eval's `clean_resize`        no             at the end
  `edm2`            EDM2's FD-DINOv2 (Karras et al. 2024, arXiv 2312.02696)          no             no
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from maskdit.contracts import Array

Size = tuple[int, int]
PIL_CUBIC, TORCH_CUBIC = -0.5, -0.75
"""The free coefficient of the cubic kernel (Keys 1981): Pillow's and torch's antialiased one, and torch's plain one."""
FIXED_POINT_BITS = 22
"""Of the fractions in Pillow's integer weights: 32 less the 8 of a pixel and 2 for overshoot."""
UNROLLED = 16
"""Taps that are added in one pass over the image; more of them take several."""


@dataclasses.dataclass(frozen=True, eq=False)
class Taps:
    """How each place of an axis is mixed from `k` places of the axis before it was resized.

    Attributes:
      places: which ones, int32 `[out, k]`.
      weights: how much of each, float64 `[out, k]`.
    """

    places: np.ndarray
    weights: np.ndarray


def bilinear_taps(size: int, out: int, *, half_pixel: bool) -> Taps:
    """Two neighbours for each place, without antialiasing.

    Args:
      size, out: length of the axis before and after.
      half_pixel: whether pixels have their centres at halves (torch); TF1 puts them at whole numbers.
    """
    # in float32, as both codes compute it: the fraction decides the last bits of every pixel
    step = np.float32(size) / np.float32(out)
    place = np.arange(out, dtype=np.float32)
    source = np.maximum((place + np.float32(0.5)) * step - np.float32(0.5), 0) if half_pixel else place * step
    low = np.minimum(source.astype(np.int32), size - 1)
    part = (source - low).astype(np.float64)
    return Taps(np.stack([low, np.minimum(low + 1, size - 1)], 1), np.stack([1 - part, part], 1))


def cubic_taps(
    size: int, out: int, *, coefficient: float = PIL_CUBIC, antialias: bool = True, step: float | None = None
) -> Taps:
    """Cubic interpolation; pixels have their centres at halves.

    Args:
      size, out: length of the axis before and after.
      coefficient: of the kernel: `PIL_CUBIC` or `TORCH_CUBIC`.
      antialias: whether the kernel is widened where the axis shrinks, and cut off at the image's edges; otherwise it
        has four taps, and the pixels at the edges are repeated.
      step: distance of neighbouring places, in pixels of the axis before; None for `size / out`.
    """
    step = size / out if step is None else step
    centre = (np.arange(out) + 0.5) * step  # [out], pixel j has its centre at j + 0.5
    if not antialias:
        first = np.floor(centre - 0.5).astype(np.int64) - 1
        places = first[:, None] + np.arange(4)  # [out, 4]
        weights = _cubic(places + 0.5 - centre[:, None], coefficient)
        return Taps(np.clip(places, 0, size - 1).astype(np.int32), weights)
    widen = max(step, 1.0)
    first = np.maximum((centre - 2 * widen + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + 2 * widen + 0.5).astype(np.int64), size)  # not included
    places = first[:, None] + np.arange((last - first).max())  # [out, k]
    weights = _cubic((places + 0.5 - centre[:, None]) / widen, coefficient) * (places < last[:, None])
    weights /= weights.sum(1, keepdims=True)
    return Taps(np.minimum(places, size - 1).astype(np.int32), weights)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The kernel of Keys 1981 (IEEE ASSP 29), equation 4, with the free coefficient `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def mix(x: Array, taps: Taps, axis: int) -> Array:
    """An axis of `x` mixed by taps, in float32; the axis gets as many places as the taps are for."""
    return _summed(x, taps.places, taps.weights.astype(np.float32), axis)


def _summed(x: Array, places: np.ndarray, weights: np.ndarray, axis: int) -> Array:
    """The sum of taps in the dtype of the weights; tap by tap, so that memory does not grow with their number."""
    shape = [1] * x.ndim
    shape[axis] = len(places)

    def add(total: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
        place, weight = tap
        picked = jnp.take(x, place, axis, mode="clip")
        return total + picked.astype(weights.dtype) * weight.reshape(shape), None

    start = jnp.zeros((*x.shape[:axis], len(places), *x.shape[axis + 1 :]), weights.dtype)
    count = places.shape[1]
    return jax.lax.scan(add, start, (jnp.asarray(places.T), jnp.asarray(weights.T)), unroll=min(count, UNROLLED))[0]


def _lerped(x: Array, taps: Taps, axis: int) -> Array:
    """`low + (high - low) * part`: what TF computes, but for the last bit where a compiler fuses the two operations."""
    low, high = (jnp.take(x, taps.places[:, i], axis, mode="clip").astype(jnp.float32) for i in (0, 1))
    part = taps.weights[:, 1].astype(np.float32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return low + (high - low) * part


def _fixed_point(x: Array, taps: Taps, axis: int) -> Array:
    """A pass of Pillow over uint8 pixels: integer weights, rounded and cut to 8 bits."""
    scaled = taps.weights * 2**FIXED_POINT_BITS
    weights = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)  # halves away from zero
    total = _summed(x, taps.places, weights, axis) + 2 ** (FIXED_POINT_BITS - 1)
    return jnp.clip(total >> FIXED_POINT_BITS, 0, 255).astype(jnp.uint8)


def _axes(
    images: Array,
    size: Size,
    taps: Callable[[int, int], Taps],
    apply: Callable[[Array, Taps, int], Array] = mix,
    order: Size = (2, 1),
) -> Array:
    """Resizes one axis after the other, the width first where `order` does not say otherwise."""
    if images.ndim != 4 or min(*images.shape[1:3], *size) < 1:
        raise ValueError(
            "images [B, H, W, C] are resized to a height and a width of at least 1: "
            f"got {list(images.shape)} for {size}"
        )
    images = jnp.asarray(images)
    for axis in order:
        before, after = images.shape[axis], size[axis - 1]
        if before != after:
            images = apply(images, taps(before, after), axis)
    return images


def tf1_bilinear(images: Array, size: Size) -> Array:
    """`tf.compat.v1.image.resize_bilinear` with its defaults: no antialiasing, and pixels at whole numbers.

    The network of the 2015 FID graph contains it. Neither rounded nor clipped.
    """
    return _axes(images, size, functools.partial(bilinear_taps, half_pixel=False), _lerped).astype(jnp.float32)


def torch_bilinear(images: Array, size: Size) -> Array:
    """`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: no antialiasing, pixels at halves.

    That of pytorch-fid. Neither rounded nor clipped.
    """
    return _axes(images, size, functools.partial(bilinear_taps, half_pixel=True)).astype(jnp.float32)


def pil_bicubic(images: Array, size: Size) -> Array:
    """Pillow's `Image.resize(resample=BICUBIC)` of 8-bit images, bit for bit: antialiased, coefficient -0.5.

    Weights are integers of 22 bits, and each axis is rounded and clipped to 0..255 by itself. Float images are rounded
    (halves to even) and clipped first. dgm-eval's default for FD-DINOv2, and EDM2's `pil` mode.

    The width comes first, but as in Pillow from version 13 on the height does where it shrinks by more than twice the
    pixels that the width does. That never happens where squares become squares; elsewhere earlier versions differ by a
    few levels.
    """
    if images.dtype != jnp.uint8:
        images = jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8)
    less_height, less_width = (before - after for before, after in zip(images.shape[1:3], size, strict=True))
    order = (1, 2) if less_height > max(0, 2 * less_width) else (2, 1)
    return _axes(images, size, cubic_taps, _fixed_point, order).astype(jnp.float32)


def clean(images: Array, size: Size) -> Array:
    """Pillow's bicubic resize of each channel as floats (mode `F`): antialiased; clipped to 0..255 at the end.

    Not rounded. That of clean-fid and of dgm-eval's `clean_resize`.
    """
    return jnp.clip(_axes(images, size, cubic_taps).astype(jnp.float32), 0, 255)


def edm2(images: Array, size: Size) -> Array:
    """`torch.nn.functional.interpolate(mode="bicubic", antialias=True)` of floats: neither rounded nor clipped.

    The kernel is Pillow's; what overshoots 0 and 255 stays. EDM2's default for FD-DINOv2.
    """
    return _axes(images, size, cubic_taps).astype(jnp.float32)


RULES: dict[str, Callable[[Array, Size], Array]] = {
    "tf1-bilinear": tf1_bilinear,
    "torch-bilinear": torch_bilinear,
    "pil-bicubic": pil_bicubic,
    "clean": clean,
    "edm2": edm2,
}
"""From a rule's name to `(images, (height, width)) -> images`."""

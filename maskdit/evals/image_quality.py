"""PSNR and SSIM of reconstructions, in each definition that papers on tokenizers use; their numbers differ.

All functions take images and reconstructions `[B, H, W, C]`, float in [-1, 1], run on the host and give `[B]` in
float64. Each quantises to uint8 what its paper quantised. State the name of the function beside any number.

SSIM is that of Wang et al. 2004 (IEEE TIP 13:4, equation 13): per pixel and channel
`(2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2))` with `C1 = (k1 R)^2` and `C2 = (k2 R)^2` for
values of range R; means, variances and covariance are of a window around the pixel. Papers differ in the window, in
what happens at borders, and in R.
"""

import numpy as np
from numpy.typing import ArrayLike

K1, K2, SIGMA, WINDOW = 0.01, 0.03, 1.5, 7
"""Constants of SSIM, deviation of its Gaussian window in pixels, and side of the flat one."""
_TRUNCATE = 3.5  # deviations at which the Gaussian window ends
_FLOOR = 1e-10


def quantised(images: ArrayLike) -> np.ndarray:
    """Images in [-1, 1] as whole numbers 0..255, float64: `127.5 x + 128`, cut to the range and truncated."""
    return np.floor(np.clip(127.5 * np.asarray(images, np.float64) + 128, 0, 255))


def squared_error(images: ArrayLike, reconstructions: ArrayLike) -> np.ndarray:
    """Mean squared difference of the quantised images, on the scale 0..255."""
    return _mse(*_pair(quantised(images), quantised(reconstructions)))


def psnr_uint8(images: ArrayLike, reconstructions: ArrayLike) -> np.ndarray:
    """`20 log10(255 / sqrt(mse))` of both as uint8; infinite for equal images.

    VA-VAE and LightningDiT (Yao et al. 2025, arXiv 2501.01423) average it over images.
    """
    return _psnr(squared_error(images, reconstructions), 255.0)


def psnr_floored(images: ArrayLike, reconstructions: ArrayLike) -> np.ndarray:
    """`20 log10(1 / sqrt(max(mse, 1e-10)))` of both as uint8 over 255; at most 100. RAE (arXiv 2510.11690)."""
    return _psnr(np.maximum(squared_error(images, reconstructions) / 255**2, _FLOOR), 1.0)


def psnr_llamagen(images: ArrayLike, reconstructions: ArrayLike) -> np.ndarray:
    """scikit-image's for range 1: reconstructions as uint8 over 255, images not quantised.

    LlamaGen (Sun et al. 2024, arXiv 2406.06525) and code derived from it average it over images.
    """
    return _psnr(_mse(*_pair(_unit(images), quantised(reconstructions) / 255)), 1.0)


def psnr_pooled(images: ArrayLike, reconstructions: ArrayLike) -> float:
    """torchmetrics' for range 1, nothing quantised: one number from the squared error of the whole batch.

    It is not the mean of the images' own, and lies below it.
    """
    return float(_psnr(_mse(*_pair(_unit(images), _unit(reconstructions))).mean(), 1.0))


def ssim_torchmetrics(
    images: ArrayLike,
    reconstructions: ArrayLike,
    *,
    sigma: float = SIGMA,
    k1: float = K1,
    k2: float = K2,
    crop: bool = False,
) -> np.ndarray:
    """torchmetrics' for range 1, of both as uint8 over 255: mean of the map over the whole image.

    RAE (arXiv 2510.11690). Up to its version 1.4.1 torchmetrics left half a window out at each border: `crop`.
    """
    values = ssim_map(
        quantised(images) / 255, quantised(reconstructions) / 255, gaussian(sigma), k1=k1, k2=k2, data_range=1.0
    )
    edge = len(gaussian(sigma)) // 2 if crop else 0
    return _inner(values, edge).mean((1, 2, 3))


def ssim_signed(
    images: ArrayLike, reconstructions: ArrayLike, *, sigma: float = SIGMA, k1: float = K1, k2: float = K2
) -> np.ndarray:
    """torchmetrics' with `data_range=(-1, 1)`: nothing quantised, both cut to [-1, 1], range 2.

    VA-VAE and LightningDiT (Yao et al. 2025, arXiv 2501.01423) average it over batches.
    """
    x, y = (np.clip(np.asarray(part, np.float64), -1, 1) for part in (images, reconstructions))
    return ssim_map(x, y, gaussian(sigma), k1=k1, k2=k2, data_range=2.0).mean((1, 2, 3))


def ssim_skimage(
    images: ArrayLike, reconstructions: ArrayLike, *, window: int = WINDOW, k1: float = K1, k2: float = K2
) -> np.ndarray:
    """scikit-image's by default, of both as uint8: flat window, sample covariance, half of it left out at borders."""
    return _flat(quantised(images), quantised(reconstructions), window, 255.0, k1, k2)


def ssim_llamagen(
    images: ArrayLike, reconstructions: ArrayLike, *, window: int = WINDOW, k1: float = K1, k2: float = K2
) -> np.ndarray:
    """scikit-image's by default, but with range 2 for values in [0, 1], which raises it.

    Reconstructions are uint8 over 255, images not quantised: LlamaGen (Sun et al. 2024, arXiv 2406.06525) and code
    derived from it.
    """
    return _flat(_unit(images), quantised(reconstructions) / 255, window, 2.0, k1, k2)


def ssim_wang(
    images: ArrayLike, reconstructions: ArrayLike, *, sigma: float = SIGMA, k1: float = K1, k2: float = K2
) -> np.ndarray:
    """The original definition (Wang et al. 2004) of both as uint8: Gaussian window, half of it left out at borders.

    scikit-image's with Gaussian weights and population covariance.
    """
    window = gaussian(sigma)
    values = ssim_map(quantised(images), quantised(reconstructions), window, k1=k1, k2=k2, data_range=255.0)
    return _inner(values, len(window) // 2).mean((1, 2, 3))


def gaussian(sigma: float = SIGMA) -> np.ndarray:
    """The Gaussian window along one side, which sums to 1: 11 pixels for the usual 1.5.

    Raises:
      ValueError: for a deviation that is not positive.
    """
    if sigma <= 0:
        raise ValueError(f"the window's deviation is a positive number of pixels, got {sigma}")
    reach = int(_TRUNCATE * sigma + 0.5)
    window = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    return window / window.sum()


def ssim_map(
    images: ArrayLike,
    reconstructions: ArrayLike,
    window: np.ndarray,
    *,
    data_range: float,
    k1: float = K1,
    k2: float = K2,
    sample: bool = False,
) -> np.ndarray:
    """SSIM at every pixel and channel.

    Args:
      images, reconstructions: `[B, H, W, C]` on any scale.
      window: weights along one side, odd in number, of sum 1. Beyond the border images are mirrored at their last
        pixel.
      data_range: R.
      k1, k2: constants.
      sample: whether variances are those of a sample, for a flat window.

    Returns:
      `[B, H, W, C]`, float64.

    Raises:
      ValueError: for images of two shapes, and those that are not wider than half a window.
    """
    x, y = _pair(images, reconstructions)
    if min(x.shape[1:3]) <= len(window) // 2:
        raise ValueError(f"a window of {len(window)} needs images of more than half of that, got {list(x.shape)}")
    mx, my = _filtered(x, window), _filtered(y, window)
    count = len(window) ** 2
    factor = count / (count - 1) if sample else 1.0
    # rounding may leave a variance below 0
    sx = factor * np.maximum(_filtered(x * x, window) - mx * mx, 0)
    sy = factor * np.maximum(_filtered(y * y, window) - my * my, 0)
    sxy = factor * (_filtered(x * y, window) - mx * my)
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    return (2 * mx * my + c1) * (2 * sxy + c2) / ((mx * mx + my * my + c1) * (sx + sy + c2))


def _flat(x: np.ndarray, y: np.ndarray, side: int, data_range: float, k1: float, k2: float) -> np.ndarray:
    if side < 3 or side % 2 == 0:
        raise ValueError(f"the window's side is an odd number from 3 on, got {side}")
    values = ssim_map(x, y, np.full(side, 1 / side), data_range=data_range, k1=k1, k2=k2, sample=True)
    return _inner(values, side // 2).mean((1, 2, 3))


def _filtered(x: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Weighted means of the window around each pixel of `[B, H, W, C]`."""
    reach = len(window) // 2
    x = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    for axis in (1, 2):
        size = x.shape[axis] - 2 * reach
        x = sum(weight * x.take(range(i, i + size), axis) for i, weight in enumerate(window))
    return x


def _inner(values: np.ndarray, edge: int) -> np.ndarray:
    if min(values.shape[1:3]) <= 2 * edge:
        raise ValueError(f"images of {list(values.shape)} are all border: they should be wider than {2 * edge} pixels")
    return values[:, edge : values.shape[1] - edge, edge : values.shape[2] - edge]


def _unit(images: ArrayLike) -> np.ndarray:
    return (np.asarray(images, np.float64) + 1) / 2


def _mse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.square(x - y).mean((1, 2, 3))


def _psnr(mse: np.ndarray, top: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 20 * np.log10(top) - 10 * np.log10(mse)


def _pair(images: ArrayLike, reconstructions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(images, np.float64), np.asarray(reconstructions, np.float64)
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"images and reconstructions are [B, H, W, C] of one shape, got {x.shape} and {y.shape}")
    return x, y

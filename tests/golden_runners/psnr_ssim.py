"""PSNR and SSIM as torchmetrics, scikit-image and papers on tokenizers compute them."""

import numpy as np

from maskdit.evals import image_quality as quality

INPUTS = ("reference", "reconstruction")
LEFT_OUT: dict[str, str] = {}


def run(case):
    config = case.config
    images, others = (case.images(name) / 127.5 - 1 for name in ("reference", "reconstruction"))
    constants = {"k1": config["k1"], "k2": config["k2"]}
    gaussian, even = {"sigma": config["sigma"], **constants}, {"window": config["skimage_win_size"], **constants}
    window = quality.gaussian(config["sigma"])
    signed = quality.ssim_signed(images, 1.1 * others, **gaussian)
    unit = (quality.quantised(part) / 255 for part in (images, others))
    return {
        "mse_uint8": quality.squared_error(images, others),
        "psnr_per_image_uint8": _finite(quality.psnr_uint8(images, others)),
        "psnr_clamped_float": quality.psnr_floored(images, others),
        "psnr_pooled": quality.psnr_pooled(images, others),
        "psnr_skimage": _finite(quality.psnr_llamagen(images, others), most=200),
        "ssim_torchmetrics_new": quality.ssim_torchmetrics(images, others, **gaussian),
        "ssim_torchmetrics_old_crop": quality.ssim_torchmetrics(images, others, **gaussian, crop=True),
        "ssim_pm1_range_tuple": signed.mean(),
        "ssim_skimage_default_255": quality.ssim_skimage(images, others, **even),
        "ssim_skimage_llamagen_range2": quality.ssim_llamagen(images, others, **even),
        "ssim_skimage_wang": quality.ssim_wang(images, others, **gaussian),
        "ssim_map_strided": case.stored(quality.ssim_map(*unit, window, **constants, data_range=1.0)[:, ::6, ::6]),
    }


def _finite(values, most=np.inf):
    """Those of images that are not equal, but for the rounding of their floats."""
    return values[np.isfinite(values) & (values < most)]

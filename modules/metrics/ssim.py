"""Structural similarity (Wang et al., IEEE TIP 13(4), 2004), on RGB and on luma."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np

from modules.metrics import Image, ImageMetric, register
from modules.metrics._variants import VARIANTS, Planes, Variant

WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation of the Gaussian window, in pixels."""


def ssim(variant: Variant, restored: Image, clean: Image | None) -> float:
    """Mean similarity (eq. 13) over planes and whole windows, in -1..1."""
    assert clean is not None
    x, y = variant.planes(restored), variant.planes(clean)
    c_1, c_2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = map(_blur, (x, y, x * x, y * y, x * y))
    var_x, var_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    contrast_structure = (2 * covariance + c_2) / (var_x + var_y + c_2)
    return float((luminance * contrast_structure).mean())


def _blur(planes: Planes) -> Planes:
    """Weighted means `[H - 10, W - 10]`, or of each plane, over Gaussian windows."""
    weight, cut = cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_64F), WINDOW // 2
    blurred = np.asarray(cv2.sepFilter2D(planes, -1, weight, weight), dtype=np.float64)
    return blurred[cut:-cut, cut:-cut]


for variant in VARIANTS:
    register(
        ImageMetric(
            name=f"ssim_{variant.name}",
            label="SSIM",
            short=f"ssim{variant.short}",
            table=variant.table,
            convention=f"{variant.convention}, {WINDOW}x{WINDOW} Gaussian window, sigma {SIGMA}",
            digits=3,
            higher_is_better=True,
            position=variant.position + 1,
            min_size=(2 * variant.border + WINDOW,) * 2,
            in_validation=variant is VARIANTS[0],
            load=lambda device, variant=variant: partial(ssim, variant),  # type: ignore[misc]
        )
    )

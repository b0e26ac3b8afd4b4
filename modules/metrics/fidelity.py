"""Fidelity of a restored image to its clean one: PSNR and SSIM, on RGB and on luma.

Computed in float64 on 8-bit images, as the published tables are. There are two conventions: the
reference's test script cuts a border of 4 pixels (single-task tables in the papers are so, on luma
Y); the plain one cuts nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation of SSIM's Gaussian window, in pixels."""


class ImageScores(NamedTuple):
    """PSNR in dB (inf for identical images) and SSIM in -1..1, on RGB and on luma."""

    psnr: float
    ssim: float
    psnr_y: float
    ssim_y: float


def score_pair(restored: Tensor, clean: Tensor, border: int = 4) -> ImageScores:
    """Compare two images.

    Args:
        restored: uint8 RGB image `[3, H, W]`.
        clean: uint8 RGB image `[3, H, W]`.
        border: pixels to cut from each side of both: 4 as the reference does, 0 for the plain
            convention.

    Raises:
        ValueError: an image is not uint8 `[3, H, W]`, the shapes differ, or what the cut leaves
            is smaller than SSIM's window.
    """
    _check_pair(restored, clean, border)
    x, y = (_with_luma(_cut(image, border).double()) for image in (restored, clean))
    ssim_of_planes = ssim(x, y)
    return ImageScores(
        psnr=psnr(x[:3], y[:3]),
        ssim=ssim_of_planes[:3].mean().item(),
        psnr_y=psnr(x[3:], y[3:]),
        ssim_y=ssim_of_planes[3].item(),
    )


def quantise(images: Tensor) -> Tensor:
    """8-bit images `[B, 3, H, W]` of float ones in [0, 1], on their device.

    Values are clamped to [0, 1], infinite ones too, and rounded, halves to the even level.

    Raises:
        ValueError: a pixel is NaN, which has no level; every such image is named.
    """
    counts = images.isnan().any(dim=1).flatten(1).sum(dim=1).tolist()
    if any(counts):
        found = ", ".join(
            f"{count} in image {number} of {len(counts)}"
            for number, count in enumerate(counts, 1)
            if count
        )
        raise ValueError(
            f"NaN pixels cannot be shown or scored: {found}; what made the images failed, "
            f"so look at its weights and its precision"
        )
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def luma(image: Tensor) -> Tensor:
    """Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255, BT.601 as MATLAB's rgb2ycbcr, unrounded.

    Takes `[3, H, W]` in 0..255 and returns `[1, H, W]` in 16..235.
    """
    weight = torch.tensor([65.481, 128.553, 24.966], dtype=image.dtype, device=image.device)
    weighted: Tensor = torch.tensordot(weight, image, dims=1)
    return 16 + weighted[None] / 255


def psnr(x: Tensor, y: Tensor) -> float:
    """10 log10(255^2 / mean((x - y)^2)) of images in 0..255, in dB; inf where they are equal."""
    mse = (x - y).square().mean().item()
    return 10 * math.log10(255**2 / mse) if mse else math.inf


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity of each plane (Wang et al., 2004, eq. 13), where windows fit.

    Takes float64 planes `[C, H, W]` in 0..255 and returns `[C]` in -1..1.
    """
    c_1, c_2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    var_x, var_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    contrast_structure = (2 * covariance + c_2) / (var_x + var_y + c_2)
    similarity: Tensor = luminance * contrast_structure
    return similarity.mean(dim=(-2, -1))


def _blur(planes: Tensor) -> Tensor:
    """Weighted means `[N, C, H - 10, W - 10]` over Gaussian windows, on the CPU."""
    # OpenCV's float64 filter is a dozen times faster than a convolution of torch's.
    weight, cut = cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_64F), WINDOW // 2
    blurred = [
        cv2.sepFilter2D(p, -1, weight, weight) for p in planes.detach().flatten(0, 1).cpu().numpy()
    ]
    whole: Tensor = torch.from_numpy(np.stack(blurred)).unflatten(0, planes.shape[:2])
    return whole[..., cut:-cut, cut:-cut]


def _with_luma(image: Tensor) -> Tensor:
    return torch.cat([image, luma(image)])


def _cut(image: Tensor, border: int) -> Tensor:
    height, width = image.shape[-2:]
    return image[:, border : height - border, border : width - border]


def _check_pair(restored: Tensor, clean: Tensor, border: int) -> None:
    check_image(restored, "restored image")
    check_image(clean, "clean image")
    if restored.shape != clean.shape:
        sizes = f"{tuple(restored.shape)} and {tuple(clean.shape)}"
        raise ValueError(f"restored and clean image must have one shape, got {sizes}")
    least = WINDOW + 2 * border
    if border < 0 or min(restored.shape[1:]) < least:
        size = f"{restored.shape[1]}x{restored.shape[2]}"
        raise ValueError(
            f"a border of {border} pixels needs to be 0 or more, and an image of at least "
            f"{least}x{least} for SSIM's {WINDOW}x{WINDOW} window; this one is {size}"
        )


def check_image(image: Tensor, name: str) -> None:
    """Refuse what is no 8-bit RGB image `[3, H, W]`.

    Raises:
        ValueError: it is something else; `name` says what it stands for.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        found = f"{image.dtype} {tuple(image.shape)}"
        raise ValueError(f"the {name} must be torch.uint8 (3, H, W), got {found}")

"""How near restored images are to the clean ones while training: a figure for each image.

A score takes images and clean images, both `[B, 3, H, W]` in [0, 1], and gives `[B]`. The figures
of an evaluation are those of `metrics`, on 8-bit images with their border cut.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from modules.metrics import fidelity as metrics

Score = Callable[[Tensor, Tensor], Tensor]


def psnr(images: Tensor, clean: Tensor) -> Tensor:
    """10 log10(1 / mean((x - y)^2)) of each image, in dB."""
    return peak_signal_noise_ratio(images, clean, (0.0, 1.0), reduction="none", dim=(1, 2, 3))


def ssim(images: Tensor, clean: Tensor) -> Tensor:
    """Mean structural similarity of each image over its planes; sides of 11 pixels at least."""
    pairs = zip(255 * images.double(), 255 * clean.double(), strict=True)
    return torch.stack([metrics.ssim(x, y).mean() for x, y in pairs])


SCORES: dict[str, Score] = {"psnr": psnr, "ssim": ssim}
"""Those that need no weights."""

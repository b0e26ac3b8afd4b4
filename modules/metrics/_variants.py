"""The four ways in which papers compare images pixel by pixel: on RGB or luma, border cut or not.

The reference's test script cuts 4 pixels from each side (single-task tables in the papers are so,
on luma); the plain convention cuts nothing. All are of 8-bit images, computed in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modules.metrics import Image

Planes = NDArray[np.float64]
BORDER = 4
"""Pixels that the reference's test script cuts from each side."""


class Variant(NamedTuple):
    """One of the ways."""

    name: str
    short: str
    """What is added to a metric's short name."""
    table: str
    convention: str
    on_luma: bool
    border: int
    position: int

    def planes(self, image: Image) -> Planes:
        """What is compared of an image: `[h, w, 3]` in 0..255, or luma `[h, w]` in 16..235."""
        height, width = image.shape[:2]
        border = self.border
        inside = image[border : height - border, border : width - border].astype(np.float64)
        return luma(inside) if self.on_luma else inside


def luma(image: Planes) -> Planes:
    """Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255, BT.601 as MATLAB's rgb2ycbcr, unrounded.

    Takes `[H, W, 3]` in 0..255 and returns `[H, W]` in 16..235.
    """
    weighted: Planes = image @ np.array([65.481, 128.553, 24.966])
    return 16 + weighted / 255


CUT, WHOLE = f"{BORDER} px cut from each side (reference)", "nothing cut (plain)"
VARIANTS = (
    Variant("rgb_border4", "", "PSNR and SSIM on RGB", f"on RGB, 8 bit, {CUT}", False, BORDER, 0),
    Variant(
        "y_border4", "_y", "PSNR and SSIM on luma", f"on Y of BT.601, 8 bit, {CUT}", True, BORDER, 2
    ),
    Variant(
        "rgb_plain",
        "_rgb_plain",
        "PSNR and SSIM on RGB, nothing cut",
        f"on RGB, 8 bit, {WHOLE}",
        False,
        0,
        4,
    ),
    Variant(
        "y_plain",
        "_y_plain",
        "PSNR and SSIM on luma, nothing cut",
        f"on Y of BT.601, 8 bit, {WHOLE}",
        True,
        0,
        6,
    ),
)

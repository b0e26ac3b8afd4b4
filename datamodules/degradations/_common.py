"""What several degradations share: number formats, light, noise, lines."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.images import Pixels

Floats = NDArray[np.float32]
"""Real values in [0, 1] unless said: an image `[H, W, 3]` or a map `[H, W]`."""

LEVELS: Floats = np.arange(256, dtype=np.float32) / np.float32(255)
"""The values that 8 bits can have: a curve f is applied fast by `f(LEVELS)[image]`."""


def to_float(image: Pixels) -> Floats:
    """uint8 0..255 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def to_pixels(image: NDArray[np.floating]) -> Pixels:
    """Floats to uint8 by clipping to [0, 1] and rounding."""
    pixels: Pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return pixels


def to_linear(y: Floats) -> Floats:
    """The light of display values, both in [0, 1] (IEC 61966-2-1, sRGB)."""
    return np.where(y <= 0.04045, y / 12.92, ((y + 0.055) / 1.055) ** 2.4).astype(np.float32)


def from_linear(light: Floats) -> Floats:
    """The display values of light; the inverse of `to_linear`, clipping to [0, 1]."""
    light = np.clip(light, 0, 1)
    curve = np.asarray(cv2.pow(light, 1 / 2.4), np.float32)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * curve - 0.055).astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: float) -> Floats:
    """Noise `[H, W]` that changes about `cells` times along the longer side; mean 0, std 1."""
    step = max(shape) / cells
    rows, columns = (math.ceil(n / step) + 1 for n in shape)
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    noise = cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def line_kernel(length: float, angle: float, width: float) -> Floats:
    """An anti-aliased bar with round ends, of height 1, in an odd square.

    k(x) = clip(width / 2 + 1 / 2 - d(x), 0, 1), with d the distance to the bar's axis.

    Args:
        length: of the axis, in pixels.
        angle: of the axis against the horizontal, in degrees.
        width: in pixels.
    """
    half = math.ceil((length + width) / 2)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along = np.clip(c * x + s * y, -length / 2, length / 2)
    distance = np.hypot(x - along * c, y - along * s)
    return np.asarray(np.clip(width / 2 + 0.5 - distance, 0, 1), np.float32)

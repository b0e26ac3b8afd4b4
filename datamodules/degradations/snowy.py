"""Falling snow: flakes at four distances before a veil of the farthest ones, as in Snow100K."""

from __future__ import annotations

import cv2
import numpy as np

from datamodules.degradations._common import Floats, line_kernel, smooth_noise, to_float, to_pixels
from datamodules.images import Pixels

WORD = "snowy"
LAYERS = ((1.0, 1800, 1.0), (2.0, 520, 1.0), (4.0, 60, 0.7), (9.0, 14, 0.5))
"""Median radius in pixels, mean number of flakes on 512 x 512 pixels, and opacity."""


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """K = a z + J (1 - z), with z the snow's opacity and a its colour."""
    shape = (clean.shape[0], clean.shape[1])
    strength = rng.uniform(0.5, 2)
    fall = line_kernel(rng.uniform(1, 9), rng.uniform(45, 135), 1)
    fall /= fall.sum()
    clear = 1 - veil(rng, shape, fall, strength)
    for radius, number, opacity in LAYERS:
        clear *= 1 - opacity * flakes(rng, shape, radius, number * strength, fall)
    z = (1 - clear)[..., None]
    a = rng.uniform(0.85, 1) + rng.normal(0, 0.015, 3)
    return to_pixels(a.astype(np.float32) * z + to_float(clean) * (1 - z))


def flakes(
    rng: np.random.Generator, shape: tuple[int, int], radius: float, number: float, fall: Floats
) -> Floats:
    """One layer `[H, W]` of discs of lognormal radius and opacity U(.45, 1), drawn out by `fall`.

    Args:
        rng: the source of randomness.
        shape: height and width.
        radius: median radius in pixels.
        number: how many flakes 512 x 512 pixels have on average.
        fall: the kernel, of sum 1, of a flake's way while the shutter is open.
    """
    layer = np.zeros(shape, np.uint8)
    n = rng.poisson(number * layer.size / 512**2)
    centres = rng.uniform(-radius, np.array(shape[::-1]) + radius, (n, 2))
    radii = radius * rng.lognormal(0, 0.35, n)
    opacities = rng.uniform(0.45, 1, n) * 255
    sixteenths = np.rint(np.column_stack([centres, radii]) * 16).astype(int).tolist()
    for (x, y, r), opacity in zip(sixteenths, opacities.tolist(), strict=True):
        cv2.circle(layer, (x, y), r, opacity, -1, cv2.LINE_AA, shift=4)
    soft = cv2.GaussianBlur(to_float(layer), (0, 0), 0.3 + 0.15 * radius)
    return np.asarray(cv2.filter2D(soft, -1, fall), np.float32)


def veil(rng: np.random.Generator, shape: tuple[int, int], fall: Floats, strength: float) -> Floats:
    """The opacity `[H, W]` of snow too far to be told apart: grain, denser in places."""
    grain = cv2.filter2D(rng.standard_normal(shape, dtype=np.float32), -1, fall)
    density = 1 + 0.3 * smooth_noise(rng, shape, 4) + 0.5 * grain / grain.std()
    return np.asarray(np.clip(rng.uniform(0, 0.1) * strength * density, 0, 1), np.float32)

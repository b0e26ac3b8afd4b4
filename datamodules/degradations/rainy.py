"""Heavy rain: crossing layers of bright streaks, as in Rain100H."""

from __future__ import annotations

import cv2
import numpy as np

from datamodules.degradations._common import Floats, line_kernel, to_float, to_pixels
from datamodules.images import Pixels

WORD = "rainy"
LONGEST = 45


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Y = clip(J + a sum_i g_i S_i), with 2 to 5 layers S_i of parallel streaks."""
    rain = np.zeros(clean.shape[:2], np.float32)
    scene, spread = rng.uniform(70, 110), rng.uniform(0, 25)
    for _ in range(rng.integers(2, 6)):
        angle = scene + rng.uniform(-spread, spread)
        rain += rng.uniform(0.4, 0.9) * streaks(rng, rain.shape, angle)
    return to_pixels(to_float(clean) + rng.uniform(0.7, 1) * rain[..., None])


def streaks(rng: np.random.Generator, shape: tuple[int, ...], angle: float) -> Floats:
    """S = min(B * k, 1) `[H, W]`: sparse seeds B drawn out to lines k that fade to their ends."""
    margin = LONGEST // 2 + 2
    wide = (shape[0] + 2 * margin, shape[1] + 2 * margin)
    density = rng.uniform(0.004, 0.012)
    seeds = (rng.random(wide, dtype=np.float32) < density) * rng.random(wide, dtype=np.float32)
    length = rng.uniform(15, LONGEST)
    kernel = line_kernel(length, angle, rng.uniform(1, 2))
    y, x = np.indices(kernel.shape, np.float32) - kernel.shape[0] // 2
    kernel *= np.clip(1 - (x**2 + y**2) / (length / 2) ** 2, 0, 1)
    drawn = cv2.filter2D(seeds, -1, kernel)[margin:-margin, margin:-margin]
    return np.minimum(drawn, 1, dtype=np.float32)

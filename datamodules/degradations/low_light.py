"""Darkness: a compressed tone curve and the sensor noise of short exposures (after LOL)."""

from __future__ import annotations

import numpy as np

from datamodules.degradations._common import LEVELS, from_linear, to_linear, to_pixels
from datamodules.images import Pixels

WORD = "low-light"


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Y = b (a J)^g, and in linear light noise of variance k Y + r^2 (photons and read-out)."""
    a, b, g = rng.uniform(0.9, 1), rng.uniform(0.5, 1), rng.uniform(1.5, 5)
    k, r = rng.uniform(2e-4, 2e-3), rng.uniform(1e-4, 2e-3)
    light = to_linear(b * (a * LEVELS) ** g)
    sigma = np.sqrt(k * light + r**2).astype(np.float32)
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    return to_pixels(from_linear(light[clean] + sigma[clean] * noise))

"""White Gaussian noise of standard deviation 50, clipped to 8 bits, as in CBSD68's benchmark."""

from __future__ import annotations

import numpy as np

from datamodules.degradations._common import Floats, to_float
from datamodules.images import Pixels

WORD = "noisy"
SIGMA = 50 / 255


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Y = clip(J + sigma n), n ~ N(0, 1) at every pixel and channel."""
    return add_noise(clean, rng.standard_normal(clean.shape, dtype=np.float32))


def add_noise(clean: Pixels, n: Floats) -> Pixels:
    """Y = floor(255 clip(J + sigma n, 0, 1)): the benchmark truncates where others round."""
    noisy = to_float(clean) + n * np.float32(SIGMA)
    return (np.clip(noisy, 0, 1) * 255).astype(np.uint8)

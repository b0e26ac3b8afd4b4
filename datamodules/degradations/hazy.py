"""Haze by the atmospheric scattering model, with an invented depth (after RESIDE)."""

from __future__ import annotations

import cv2
import numpy as np

from datamodules.degradations._common import Floats, smooth_noise, to_float, to_pixels
from datamodules.images import Pixels

WORD = "hazy"


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """I = J t + A (1 - t), t = exp(-beta d), with depth d in [0, 1] and airlight A."""
    J = to_float(clean)
    A, beta = rng.uniform(0.7, 1), rng.uniform(0.6, 1.8)
    t = np.exp(-np.float32(beta) * depth(rng, J))[..., None]
    return to_pixels(J * t + np.float32(A) * (1 - t))


def depth(rng: np.random.Generator, J: Floats) -> Floats:
    """A plausible depth `[H, W]` in [0, 1] of the image J: far at the top, edges like J's.

    A vertical ramp to a random power, tilted, with slow noise, then guided by luminance.
    """
    h, w = J.shape[:2]
    ramp = np.linspace(1, 0, h, dtype=np.float32)[:, None] ** rng.uniform(0.8, 2)
    tilt = rng.uniform(-0.3, 0.3) * np.linspace(-0.5, 0.5, w, dtype=np.float32)
    rough = 0.15 + 0.55 * ramp + tilt + 0.06 * smooth_noise(rng, (h, w), 5)
    luminance = np.asarray(cv2.cvtColor(J, cv2.COLOR_RGB2GRAY), np.float32)
    return np.clip(guided_filter(luminance, rough, max(2, min(h, w) // 12), 1e-3), 0, 1)


def guided_filter(guide: Floats, p: Floats, radius: int, eps: float) -> Floats:
    """q = mean(a) I + mean(b), a = cov(I, p) / (var(I) + eps), b = mean(p) - a mean(I).

    He, Sun and Tang, ECCV 2010, with I the guide and means over windows of 2 radius + 1.
    """

    def mean(x: Floats) -> Floats:
        return np.asarray(cv2.blur(x, (2 * radius + 1, 2 * radius + 1)), np.float32)

    mean_I, mean_p = mean(guide), mean(p)
    a = (mean(guide * p) - mean_I * mean_p) / (mean(guide * guide) - mean_I**2 + np.float32(eps))
    b = mean_p - a * mean_I
    return mean(a) * guide + mean(b)

"""A cast shadow: darker and bluer light under a matte with a soft edge (after SRD)."""

from __future__ import annotations

import math

import cv2
import numpy as np

from datamodules.degradations._common import Floats, smooth_noise, to_float, to_pixels
from datamodules.images import Pixels

WORD = "shadowed"


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Y = (1 - m) J + m max(0, a (J - x1)), a = y2 / (1 - x1) per channel, under a matte m.

    Affine darkening after Inoue and Yamasaki, IEEE TCSVT 2020: x1 is the value that turns black,
    y2 what white turns to, a little less in red and more in blue, since the sky still shines.
    """
    J = to_float(clean)
    m = matte(rng, (clean.shape[0], clean.shape[1]))[..., None]
    x1, shift = rng.uniform(0, 0.25), rng.normal(0.05, 0.025)
    y2 = np.clip(rng.uniform(0.25, 0.85) + np.array([-shift, 0, shift]), 0, 1)
    dark = np.maximum(0, (y2 / (1 - x1)).astype(np.float32) * (J - np.float32(x1)))
    return to_pixels((1 - m) * J + m * dark)


def matte(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Where the shadow lies `[H, W]`, in [0, 1]; its edge is sharp here and soft there."""
    inside = polygon(rng, shape) if rng.random() < 0.5 else blobs(rng, shape)
    side = min(shape)
    sharp = cv2.GaussianBlur(inside, (0, 0), 1)
    width = 2 * round(side * rng.uniform(0.02, 0.1)) + 1
    soft = cv2.stackBlur(inside, (width, width))
    softness = np.clip(0.5 + 0.5 * smooth_noise(rng, shape, 3), 0, 1)
    return np.asarray((1 - softness) * sharp + softness * soft, np.float32)


def polygon(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """1 inside a star-shaped polygon of 4 to 9 corners about a point in the image, else 0."""
    corners = int(rng.integers(4, 10))
    angles = 2 * math.pi * (np.arange(corners) + rng.uniform(0, 1, corners)) / corners
    radii = max(shape) * rng.uniform(0.15, 0.5, corners)
    points = rng.uniform(0.2, 0.8, 2) * shape[::-1]
    points = points + radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    inside = np.zeros(shape, np.float32)
    cv2.fillPoly(inside, [np.rint(points).astype(np.int32)], 1)
    return inside


def blobs(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """1 on the highest tenth to four tenths of smooth noise, else 0."""
    noise = smooth_noise(rng, shape, rng.uniform(2, 5))
    return (noise > np.quantile(noise[::4, ::4], 1 - rng.uniform(0.1, 0.4))).astype(np.float32)

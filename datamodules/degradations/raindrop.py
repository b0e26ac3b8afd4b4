"""Drops on a pane before the camera: small lenses out of focus (after RainDrop)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.degradations._common import Floats, to_float, to_pixels
from datamodules.images import Pixels

WORD = "raindrop"


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Y = (1 - m) J + m ((1 - w) B(x + s grad h) + w L), with m the matte of drops of height h.

    A drop shows a blurred view B, bent by its slope, and, since it looks nearly everywhere at
    once, some of the scene's mean light L.
    """
    J = to_float(clean)
    h = drops(rng, (clean.shape[0], clean.shape[1]))
    m = np.clip(1.8 * h - 0.3, 0, 1)[..., None] * np.float32(rng.uniform(0.7, 1))
    blurred = np.asarray(cv2.GaussianBlur(J, (0, 0), rng.uniform(3, 6)), np.float32)
    view = refract(blurred, h, rng.uniform(500, 1500))
    w, L = np.float32(rng.uniform(0.3, 0.7)), J.mean(axis=(0, 1)) * np.float32(rng.uniform(1.2, 2))
    return to_pixels((1 - m) * J + m * ((1 - w) * view + w * L))


def drops(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """A height field `[H, W]` in [0, 1) of 15 to 45 drops on 512 x 512 pixels, at least two.

    h = 1 - exp(-2 sum_i exp(-|x - c_i|^2 / 2 r_i^2)): each drop is a few balls that melt together.
    """
    field = np.zeros(shape, np.float32)
    for _ in range(max(2, round(rng.uniform(15, 45) * field.size / 512**2))):
        radius = 15 * rng.lognormal(0, 0.35)
        centre = rng.uniform((0, 0), shape)
        for _ in range(rng.integers(1, 5)):
            add_ball(field, centre + rng.normal(0, 0.6 * radius, 2), radius * rng.uniform(0.5, 1))
    return 1 - np.exp(-field)


def add_ball(field: Floats, centre: NDArray[np.float64], r: float) -> None:
    """Add 2 exp(-|x - centre|^2 / 2 r^2) to the field, in place, within 3 r."""
    top, left = np.maximum(0, np.floor(centre - 3 * r)).astype(int)
    window = field[top : max(0, int(centre[0] + 3 * r)), left : max(0, int(centre[1] + 3 * r))]
    y = np.arange(top, top + window.shape[0]) - centre[0]
    x = np.arange(left, left + window.shape[1]) - centre[1]
    window += 2 * np.outer(np.exp(-(y**2) / (2 * r**2)), np.exp(-(x**2) / (2 * r**2)))


def refract(image: Floats, height: Floats, strength: float) -> Floats:
    """image(x + strength grad h): a drop bends light towards its middle, and turns the view."""
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=1 / 8)
    y, x = np.indices(height.shape, np.float32)
    bent = cv2.remap(
        image, x + strength * dx, y + strength * dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(bent, np.float32)

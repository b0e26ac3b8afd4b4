"""Holes along thin broken strokes, filled with white (after RePaint's "thin" masks)."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.images import Pixels

WORD = "uncompleted"
COVERAGE = (0.08, 0.5)
LEAST = 0.03
MARGIN = 40
STROKE_AREA = 1150.0


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Y = m J + (1 - m): white where the mask m is 0."""
    return fill(clean, strokes(rng, (clean.shape[0], clean.shape[1])))


def fill(clean: Pixels, holes: NDArray[np.uint8]) -> Pixels:
    """White where `holes` `[H, W]` is not 0, the image elsewhere."""
    return np.where(holes[..., None] > 0, np.uint8(255), clean)


def strokes(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A map `[H, W]` of strokes, 255 inside, which cover a share c ~ U(.08, .5) on average.

    Strokes are thrown independently over the image and a margin of area A, so a share
    1 - exp(-n a / A) is covered by n strokes of area a. A small image gets as many as it takes.
    """
    holes = np.zeros(shape, np.uint8)
    area = (shape[0] + 2 * MARGIN) * (shape[1] + 2 * MARGIN)
    for _ in range(round(-math.log(1 - rng.uniform(*COVERAGE)) * area / STROKE_AREA)):
        _draw_stroke(rng, holes)
    while np.count_nonzero(holes) < LEAST * holes.size:
        _draw_stroke(rng, holes)
    return holes


def _draw_stroke(rng: np.random.Generator, holes: NDArray[np.uint8]) -> None:
    """One to five segments of 10 to 50 pixels that turn left and right in turn."""
    n = int(rng.integers(1, 6))
    turns = rng.uniform(0.4, 2.6, n) * (-1) ** np.arange(n)
    directions = rng.uniform(0, 2 * math.pi) + np.cumsum(turns)
    steps = rng.uniform(10, 50, n) * np.array([np.cos(directions), np.sin(directions)])
    start = rng.uniform(-MARGIN, np.array(holes.shape[::-1]) + MARGIN)
    points = start[:, None] + np.cumsum(np.pad(steps, ((0, 0), (1, 0))), axis=1)
    width = int(rng.integers(6, 15))
    cv2.polylines(holes, [np.rint(points.T).astype(np.int32)], False, 255, width)

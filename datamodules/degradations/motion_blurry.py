"""Blur of a shaken camera: light summed along the way it moves while the shutter is open."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.degradations._common import LEVELS, Floats, from_linear, to_linear, to_pixels
from datamodules.images import Pixels

WORD = "motion-blurry"


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Y = mean over time of the moving image, in linear light: one kernel or moved frames."""
    light = to_linear(LEVELS)[clean]
    if rng.random() < 0.5:
        blurred = np.asarray(cv2.filter2D(light, -1, trajectory_kernel(rng)), np.float32)
    else:
        blurred = mean_frame(rng, light)
    return to_pixels(from_linear(blurred))


def trajectory_kernel(rng: np.random.Generator) -> Floats:
    """The kernel, of sum 1 in an odd square, of a random trajectory.

    Boracchi and Foi, IEEE TIP 2012: a point moves at constant speed with inertia, is jostled,
    pulled to the start, and now and then flung back.
    """
    steps, length = 128, rng.uniform(10, 34)
    jostle, pull = rng.uniform(0, 0.15), rng.uniform(0, 0.001)
    velocity = complex(np.exp(2j * math.pi * rng.uniform()))
    position, path = 0j, []
    for _ in range(steps):
        path.append(position)
        if rng.random() < 0.005:
            velocity *= complex(np.exp(1j * (math.pi + rng.uniform(-0.5, 0.5))))
        velocity += jostle * complex(*rng.standard_normal(2)) - pull * position
        velocity /= abs(velocity)
        position += velocity * length / steps
    return splat(np.array(path) - np.mean(path))


def splat(points: NDArray[np.complex128]) -> Floats:
    """The points x + iy `[N]` around 0 as a kernel of sum 1, each shared by its four pixels."""
    half = math.ceil(np.abs(points).max()) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    x, y = points.real + half, points.imag + half
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    for i, weight_y in ((0, 1 - (y - row)), (1, y - row)):
        for j, weight_x in ((0, 1 - (x - column)), (1, x - column)):
            np.add.at(kernel, (row + i, column + j), weight_y * weight_x)
    return np.asarray(kernel / len(points), np.float32)


def mean_frame(rng: np.random.Generator, light: Floats) -> Floats:
    """The mean of 7 to 13 frames that shift, turn and zoom by a few pixels about the middle one."""
    h, w = light.shape[:2]
    centre, radius = ((w - 1) / 2, (h - 1) / 2), math.hypot(h, w) / 2
    direction = rng.uniform(0, 2 * math.pi)
    shift = rng.uniform(2, 9) * np.array([math.cos(direction), math.sin(direction)])
    turn, zoom = rng.normal(0, 4, 2) / radius
    times = np.linspace(-0.5, 0.5, rng.integers(7, 14))
    total = np.zeros_like(light)
    for time in times:
        motion = cv2.getRotationMatrix2D(centre, math.degrees(turn * time), 1 + zoom * time)
        motion[:, 2] += shift * time
        total += cv2.warpAffine(light, motion, (w, h), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(total / len(times), np.float32)

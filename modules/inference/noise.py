"""Noise that belongs to places of an image, so that tiles which overlap share their noise.

The plane is divided into square blocks, and each block of each draw has random numbers of its own.
Any window of the plane can be drawn without the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.diffusion.samplers import Noise

BLOCK = 64
"""Side of a block, in pixels."""


def place_noise(seeds: Sequence[int], top: int, left: int) -> Noise:
    """Noise for sampling the window of images whose upper left corner is at (top, left).

    The first call is draw 0, the second draw 1, and so on. Takes and returns `[B, C, H, W]`; drawn
    on the CPU, so that every device gets the same.

    Args:
        seeds: one for each image; images of one seed have the same noise.
        top: first row of the window.
        left: first column.

    Raises:
        ValueError: in drawing, where the batch does not hold one image for each seed.
    """
    draws = itertools.count()

    def draw(like: Tensor) -> Tensor:
        batch, channels, height, width = like.shape
        if batch != len(seeds):
            raise ValueError(f"got {len(seeds)} seeds for a batch of {batch} images")
        number, shape = next(draws), (channels, height, width)
        windows = {seed: noise_window(seed, number, top, left, shape) for seed in set(seeds)}
        return torch.stack([windows[seed] for seed in seeds]).to(like)

    return draw


def noise_window(seed: int, draw: int, top: int, left: int, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise of a window of the plane, float32 `[C, H, W]`.

    A pure function of seed (0 to 2^128 - 1), draw, and each pixel's place and channel.

    Args:
        seed: of the image.
        draw: number of the draw.
        top: first row of the window, 0 or more.
        left: first column, 0 or more.
        shape: C, H and W.
    """
    channels, height, width = shape
    rows, columns = _blocks(top, height), _blocks(left, width)
    blocks = np.empty((channels, len(rows), BLOCK, len(columns), BLOCK), dtype=np.float32)
    for i, j in itertools.product(range(len(rows)), range(len(columns))):
        blocks[:, i, :, j] = _block(seed, draw, rows[i], columns[j], channels)
    canvas = blocks.reshape(channels, len(rows) * BLOCK, len(columns) * BLOCK)
    y, x = top - rows[0] * BLOCK, left - columns[0] * BLOCK
    return torch.from_numpy(canvas[:, y : y + height, x : x + width].copy())


def _blocks(first: int, length: int) -> range:
    """Numbers of the blocks that hold `length` pixels from the first on."""
    return range(first // BLOCK, -(-(first + length) // BLOCK))


def _block(seed: int, draw: int, row: int, column: int, channels: int) -> NDArray[np.float32]:
    """One block, `[C, BLOCK, BLOCK]`: Philox counts within it in the first of its four words."""
    numbers = np.random.Generator(np.random.Philox(key=seed, counter=(0, draw, row, column)))
    return numbers.standard_normal((channels, BLOCK, BLOCK), dtype=np.float32)

"""Noise that belongs to places of a canvas, so that tiles which share a place share its noise.

The canvas has no edges: it is laid out in square blocks, and each block of each draw has random
numbers of its own. Any window of it is had without making the rest.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.diffusion.samplers import Noise

BLOCK = 64
"""Side of a block, in pixels."""


def canvas_noise(seed: int, top: int, left: int) -> Noise:
    """Noise for sampling the window of a canvas whose upper left corner is at (top, left).

    The first call is draw 0, the second draw 1, and so on. Takes and returns `[1, C, H, W]`; drawn
    on the CPU, so that every device gets the same.

    Raises:
        ValueError: in drawing, where the batch is not one image.
    """
    draws = itertools.count()

    def draw(like: Tensor) -> Tensor:
        if len(like) != 1:
            raise ValueError(f"a window of a canvas is one image, got a batch of {len(like)}")
        _, channels, height, width = like.shape
        return noise_window(seed, next(draws), top, left, (channels, height, width))[None].to(like)

    return draw


def noise_window(seed: int, draw: int, top: int, left: int, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise of a window of the canvas, float32 `[C, H, W]`.

    A pure function of seed (0 to 2^128 - 1), draw, and each pixel's place and channel.

    Args:
        seed: of the canvas.
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

"""Augmentation: random crops, flips and quarter turns, the same for both images; colour jitter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datamodules.degradations._common import LEVELS, to_pixels
from datamodules.images import BadImage, Pixels
from datamodules.shards.reader import Window

GRID = 16
"""JPEG with 4:2:0 chroma works on blocks of this side, in pixels."""


class View(NamedTuple):
    """A crop of an image, then rotated by quarter turns and flipped."""

    window: Window
    turns: int = 0
    flip: bool = False

    def orient(self, image: Pixels) -> Pixels:
        """Rotate and flip the crop."""
        turned: Pixels = np.rot90(image, self.turns)
        return turned[:, ::-1] if self.flip else turned


Augment = Callable[[int, int, np.random.Generator], View]
"""(height, width, rng) -> the view of an image of that size.

Raises BadImage where it is too small.
"""


@dataclass(frozen=True)
class RandomPatch:
    """A random crop of `side` pixels with random flips and quarter turns."""

    side: int

    def __call__(self, height: int, width: int, rng: np.random.Generator) -> View:
        """See Augment."""
        side = self.side
        if min(height, width) < side:
            raise BadImage(
                f"{width}x{height} pixels are fewer than the crop of {side}; use smaller crops or, "
                "if this is a tile of a larger image, larger tiles"
            )
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        return View(Window(top, left, side, side), turns, flip)


def whole_image(height: int, width: int, rng: np.random.Generator) -> View:
    """The whole image: training of the controller crops on the device."""
    return View(Window(0, 0, height, width))


def add_margin(window: Window, height: int, width: int) -> Window:
    """A window with a margin of 16 to 32 pixels, aligned to multiples of 16, within its image.

    Inside the window, a synthetic degradation gives nearly the same as on the whole image: strokes
    enter from outside, and JPEG blocks are aligned. JPEG gives exactly the same, since decoding
    looks one pixel beyond a block to interpolate chroma.
    """
    top, left = (max(0, (start // GRID - 1) * GRID) for start in window[:2])
    bottom = min(height, ((window.top + window.height) // GRID + 2) * GRID)
    right = min(width, ((window.left + window.width) // GRID + 2) * GRID)
    return Window(top, left, bottom - top, right - left)


def color_jitter(clean: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Vary exposure and colours: y_c = clip(g h_c x_c^gamma), for each colour c.

    The logarithms of gamma and g are uniform within `strength`, those of h_c within a fourth of it.

    Args:
        clean: an RGB image `[H, W, 3]`, uint8; it is not changed.
        strength: from 0, which changes nothing; at 0.5, contrast and brightness vary by factors
            between 0.6 and 1.65, and bright skies may become white.
        rng: of the factors; five numbers are drawn.
    """
    gamma, gain, *colours = np.exp(strength * rng.uniform(-1, 1, 5) * [1, 1, 0.25, 0.25, 0.25])
    curves = LEVELS[:, None] ** gamma * gain * colours
    table = to_pixels(curves)
    jittered: Pixels = np.stack([table[clean[..., c], c] for c in range(3)], axis=-1)
    return jittered

"""Tiles that overlap: where they lie, how they blend, and the image they make, band by band.

Along each axis a tile gives way to the next in the middle of what they share, over a ramp half as
wide as they share at least. What lies outside of the ramps, next to a tile's edge, is not used: a
network sees too little there. All tiles start at multiples of `ALIGN`, so that a network that
halves its resolution a few times sees each place in the same phase as in the whole image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ALIGN = 32
SHARED = 8
"""A tile shares at least `1 / SHARED` of its side with the next."""
SMALLEST = 2 * ALIGN
"""Least side of a tile, in pixels."""


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Span(NamedTuple):
    """What a tile covers of one axis, `start` to `stop`, in pixels."""

    start: int
    stop: int


def spans(length: int, side: int) -> list[Span]:
    """Tiles along an axis: as few as share enough, evenly spread.

    Raises:
        ValueError: `length` or `side` is too small.
    """
    if length < 1 or side < SMALLEST:
        raise ValueError(f"need a length of 1 and tiles of {SMALLEST}, got {length} and {side}")
    if length <= side:
        return [Span(0, length)]
    stride = (side - side // SHARED) // ALIGN
    rest = length - side
    steps = -(-rest // (stride * ALIGN))
    starts = [-(-rest * i // (steps * ALIGN)) * ALIGN for i in range(steps + 1)]
    return [Span(start, min(start + side, length)) for start in starts]


def blend_weights(along: list[Span], side: int) -> list[Tensor]:
    """The weight of each tile at each of its pixels, float32 `[length]`; they sum to 1 everywhere.

    w(x) = 3 s^2 - 2 s^3 on the way up, with s the share of the ramp, and 1 minus that down.
    """
    centres = [(a.stop + b.start) / 2 for a, b in itertools.pairwise(along)]
    ramp = side // (2 * SHARED)
    weights = []
    for i, (start, stop) in enumerate(along):
        x = torch.arange(start, stop) + 0.5
        up = _rise(x, centres[i - 1], ramp) if i > 0 else torch.ones(stop - start)
        weights.append(up - _rise(x, centres[i], ramp) if i < len(centres) else up)
    return weights


def count_tiles(height: int, width: int, side: int) -> int:
    """How many tiles of a side an image takes."""
    return len(spans(height, side)) * len(spans(width, side))


def tiled(
    height: int, width: int, side: int, work: Callable[[Window], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Let each tile be worked on, and blend what comes of it.

    No more than one row of tiles is held.

    Args:
        height: of the image.
        width: of the image.
        side: of a tile; the image is one tile where it is not larger.
        work: makes `[..., h, w]` of a tile, float32, such as a batch of images.

    Yields:
        Bands of the whole, from top to bottom: the first row and `[..., h, W]`.
    """
    down, across = spans(height, side), spans(width, side)
    vertical, horizontal = blend_weights(down, side), blend_weights(across, side)
    kept = torch.zeros(0)
    for i, (top, bottom) in enumerate(down):
        band = torch.zeros(0)
        for (left, right), weight in zip(across, horizontal, strict=True):
            made = work(Window(top, left, bottom - top, right - left))
            if not len(band):
                band = made.new_zeros(*made.shape[:-1], width)
            band[..., left:right] += made * (vertical[i][:, None] * weight)
        if len(kept):
            band[..., : kept.shape[-2], :] += kept
        done = down[i + 1].start - top if i + 1 < len(down) else bottom - top
        kept = band[..., done:, :].clone()
        yield top, band[..., :done, :]


def _rise(x: Tensor, centre: float, width: int) -> Tensor:
    s = ((x - centre) / width + 0.5).clamp(0, 1)
    return s * s * (3 - 2 * s)

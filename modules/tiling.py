"""Tiles that overlap: where they lie, how they blend, and the image they make, band by band.

Along each axis a tile gives way to the next in the middle of what they share, over a ramp an eighth
of a tile wide; what lies outside of the ramps, next to a tile's edge, is not used, for a network
sees too little there. All tiles start at multiples of `ALIGN`, so that a network that halves its
resolution a few times sees each place in the same phase as it does in the whole image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ALIGN = 32
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
    """Tiles along an axis: as few as share a quarter of `side` at least, evenly spread.

    Raises:
        ValueError: `length` or `side` is too small.
    """
    if length < 1 or side < SMALLEST:
        raise ValueError(f"need a length of 1 and tiles of {SMALLEST}, got {length} and {side}")
    if length <= side:
        return [Span(0, length)]
    stride = (side - side // 4) // ALIGN
    rest = length - side
    steps = -(-rest // (stride * ALIGN))
    starts = [-(-rest * i // (steps * ALIGN)) * ALIGN for i in range(steps + 1)]
    return [Span(start, min(start + side, length)) for start in starts]


def blend_weights(along: list[Span], side: int) -> list[Tensor]:
    """The weight of each tile at each of its pixels, float32 `[length]`; they sum to 1 everywhere.

    w(x) = 3 s^2 - 2 s^3 on the way up, with s the share of the ramp, and 1 minus that down.
    """
    ramps = [_ramp_centre(a, b) for a, b in itertools.pairwise(along)]
    weights = []
    for i, (start, stop) in enumerate(along):
        x = torch.arange(start, stop) + 0.5
        weight = torch.ones(stop - start)
        if i > 0:
            weight = _rise(x, ramps[i - 1], side // 8)
        if i < len(ramps):
            weight = weight - _rise(x, ramps[i], side // 8)
        weights.append(weight)
    return weights


def count_tiles(height: int, width: int, side: int) -> int:
    """How many tiles of a side an image takes."""
    return len(spans(height, side)) * len(spans(width, side))


def tiled(
    height: int, width: int, side: int, work: Callable[[Window], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Let each tile be worked on, and blend what comes of it.

    No more is held than one row of tiles.

    Args:
        height: of the image.
        width: of the image.
        side: of a tile; the image is one tile where it is not larger.
        work: makes `[C, h, w]` of a tile, float32.

    Yields:
        Bands of the whole, from top to bottom: the first row and `[C, h, W]`.
    """
    down, across = spans(height, side), spans(width, side)
    vertical, horizontal = blend_weights(down, side), blend_weights(across, side)
    kept = torch.zeros(0)
    for i, (top, bottom) in enumerate(down):
        band = torch.zeros(0)
        for (left, right), weight in zip(across, horizontal, strict=True):
            made = work(Window(top, left, bottom - top, right - left))
            if not len(band):
                band = made.new_zeros(len(made), bottom - top, width)
            band[:, :, left:right] += made * (vertical[i][:, None] * weight)
        if len(kept):
            band[:, : kept.shape[1]] += kept
        done = down[i + 1].start - top if i + 1 < len(down) else bottom - top
        kept = band[:, done:].clone()
        yield top, band[:, :done]


def _ramp_centre(before: Span, after: Span) -> float:
    return (before.stop + after.start) / 2


def _rise(x: Tensor, centre: float, width: int) -> Tensor:
    s = ((x - centre) / width + 0.5).clamp(0, 1)
    return s * s * (3 - 2 * s)

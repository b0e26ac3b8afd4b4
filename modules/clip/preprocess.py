"""The square views of images that CLIP takes, whole for use and cropped at random for training.

They are what Pillow and open_clip's transforms make of 8-bit images, but batched and on the
images' device: each bicubic pass ends on 8-bit levels, as Pillow's do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
BAND = 2**22
"""Pixels of an image that are made floats at a time."""
LONGEST = 16
"""Short sides of an image, along its long one, that are looked at."""


class Crop(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def clip_preprocess(images: Tensor, size: int) -> Tensor:
    """Scale the short side to `size`, crop the centre square and normalise.

    Only bands of the images are made floats at a time.

    Args:
        images: RGB `[B, 3, H, W]`, uint8, uint16, or floats in [0, 1]; values outside are clamped.
        size: side of the view, in pixels.

    Returns:
        float32 `[B, 3, size, size]`, less CLIP's mean, over its standard deviation.
    """
    images = _without_far_ends(images)
    height, width = images.shape[-2:]
    short = min(height, width)
    levels = _resize(images, size * height // short, size * width // short)
    top, left = (round((side - size) / 2) for side in levels.shape[-2:])
    return _normalise(levels[..., top : top + size, left : left + size])


def clip_crops(images: Tensor, size: int, crops_per_side: int) -> Tensor:
    """Cut square crops of the view's side, as many along each side of the images, evenly spread.

    Noise, blur and compression show at an image's own scale, which a view of the whole loses.

    Args:
        images: as for `clip_preprocess`.
        size: side of the views, in pixels; crops of smaller images are scaled to it.
        crops_per_side: 1 takes `clip_preprocess` of the whole image. Where there is no room for so
            many that differ, there are fewer.

    Returns:
        float32 `[B, N, 3, size, size]`, as `clip_preprocess`.
    """
    if crops_per_side == 1:
        return clip_preprocess(images, size)[:, None]
    height, width = images.shape[-2:]
    side = min(size, height, width)
    views = [
        clip_preprocess(images[..., top : top + side, left : left + side], size)
        for top in _starts(height - side, crops_per_side)
        for left in _starts(width - side, crops_per_side)
    ]
    return torch.stack(views, dim=1)


def random_clip_preprocess(
    images: Tensor,
    size: int,
    scale: tuple[float, float],
    generators: Sequence[torch.Generator],
    extents: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Crop each image at random, scale the crop to a square and normalise.

    Args:
        images: RGB `[B, 3, H, W]`, uint8, or floats in [0, 1]; values outside are clamped.
        size: side of the view, in pixels.
        scale: the least and the largest share of the image's area that a crop takes.
        generators: one for each image, which draws its crop.
        extents: height and width of the image in the upper left of each entry, where the rest is
            padding; None where there is none.

    Returns:
        float32 `[B, 3, size, size]`, less CLIP's mean, over its standard deviation.
    """
    full = [(images.shape[-2], images.shape[-1])] * len(images)
    crops = random_crops(full if extents is None else extents, scale, generators)
    cut = (
        image[None, :, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        for image, crop in zip(images, crops, strict=True)
    )
    return _normalise(torch.cat([_resize(image, size, size) for image in cut]))


def random_crops(
    sizes: Sequence[tuple[int, int]],
    scale: tuple[float, float],
    generators: Sequence[torch.Generator],
) -> list[Crop]:
    """A crop of each image of a given height and width.

    Its area is uniform, its ratio of uniform logarithm in 3/4..4/3, its place uniform. It is the
    first of ten draws that fits into the image, or else the largest central crop of an allowed
    ratio, as with torchvision's RandomResizedCrop.
    """
    return [
        _first_fitting(_uniform(generator), *size, scale)
        for generator, size in zip(generators, sizes, strict=True)
    ]


def _starts(room: int, count: int) -> list[int]:
    """Where windows begin that are spread over so much room; none twice."""
    return sorted({round(room * i / (count - 1)) for i in range(count)})


def _uniform(generator: torch.Generator) -> list[list[float]]:
    draws: list[list[float]]
    draws = torch.rand(TRIES, 4, generator=generator, device=generator.device).tolist()
    return draws


def _first_fitting(
    tries: list[list[float]], height: int, width: int, scale: tuple[float, float]
) -> Crop:
    least, largest = RATIO
    for share, slant, down, right in tries:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        ratio = least * (largest / least) ** slant
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
    w, h = min(width, round(height * largest)), min(height, round(width / least))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def _without_far_ends(images: Tensor) -> Tensor:
    """The middle of an image that is long and narrow, which holds the view many times over."""
    sides = images.shape[-2:]
    longest = LONGEST * min(sides)
    for dim, side in zip((-2, -1), sides, strict=True):
        if side > longest:
            images = images.narrow(dim, (side - longest) // 2, longest)
    return images


def _levels(images: Tensor) -> Tensor:
    """Whole numbers 0..255, in float32."""
    if images.dtype == torch.uint8:
        return images.float()
    if images.dtype == torch.uint16:
        return (images.float() / 257).round()
    return (images.float().clamp(0, 1) * 255).round()


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic, along rows and then along columns, each to whole levels.

    Pillow 13 shrinks tall images along columns first, which shifts a third of the values by a
    level; the released weights were trained with an earlier one.
    """
    rows = max(1, BAND // (len(images) * images.shape[-1]))
    bands = [_interpolate(_levels(b), b.shape[-2], width) for b in images.split(rows, dim=-2)]
    return _interpolate(torch.cat(bands, dim=-2), height, width)


def _interpolate(levels: Tensor, height: int, width: int) -> Tensor:
    resized = F.interpolate(levels, (height, width), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255)


def _normalise(levels: Tensor) -> Tensor:
    mean, std = _statistics(levels.device)
    return (levels / 255 - mean) / std


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """CLIP's mean and standard deviation, `[3, 1, 1]` each, brought to a device once."""
    mean, std = torch.tensor([CLIP_MEAN, CLIP_STD], device=device)[..., None, None]
    return mean, std

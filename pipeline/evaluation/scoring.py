"""The scores of one image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from modules.metrics.fidelity import score_pair
from modules.metrics.perceptual import LpipsAlex
from pipeline.evaluation.measures import (
    BORDER,
    LPIPS,
    NO_REFERENCE,
    RGB,
    RGB_PLAIN,
    Y_PLAIN,
    Measure,
    Y,
)
from pipeline.evaluation.perceptual import Perceptual

FIDELITY = ((BORDER, (*RGB, *Y)), (0, (*RGB_PLAIN, *Y_PLAIN)))
"""The border cut, and the measures in the order of `score_pair`."""
LEAST_LPIPS = 31
"""Pixels a side that AlexNet needs."""


class Scores(NamedTuple):
    """What could be measured, and why the rest could not."""

    values: dict[str, float]
    missing: dict[str, str]


def score(image: Tensor, clean: Tensor | None, perceptual: Perceptual) -> Scores:
    """Measure an image; what it is too small for is missing.

    Args:
        image: uint8 RGB `[3, H, W]`.
        clean: the same of the clean image; without it only what needs none is measured.
        perceptual: the metrics whose weights are there.

    Raises:
        ValueError: the two differ in shape.
    """
    if clean is not None and image.shape != clean.shape:
        sizes = f"{tuple(image.shape)} and {tuple(clean.shape)}"
        raise ValueError(f"the image and the clean one differ in shape: {sizes}")
    # In one order in memory, for that of sums follows it: equal images get equal scores.
    image, clean = image.contiguous(), None if clean is None else clean.contiguous()
    scores = Scores({}, {})
    for measures, measure in _measuring(image, clean, perceptual):
        names = [m.name for m in measures]
        try:
            scores.values.update(zip(names, measure(), strict=True))
        except ValueError as error:
            scores.missing.update(dict.fromkeys(names, str(error)))
    return scores


def _measuring(
    image: Tensor, clean: Tensor | None, perceptual: Perceptual
) -> Iterator[tuple[Sequence[Measure], Callable[[], Sequence[float]]]]:
    """What measures several values at once."""
    if clean is not None:
        for border, measures in FIDELITY:
            yield measures, partial(score_pair, image, clean, border)
        if perceptual.lpips:
            yield [LPIPS], partial(_lpips, perceptual.lpips, image, clean)
    if no_reference := perceptual.no_reference:
        yield [NO_REFERENCE], lambda: [no_reference(image)]


def _lpips(metric: LpipsAlex, image: Tensor, clean: Tensor) -> list[float]:
    if min(image.shape[1:]) < LEAST_LPIPS:
        size = f"{image.shape[2]}x{image.shape[1]}"
        raise ValueError(f"LPIPS needs {LEAST_LPIPS} pixels a side; this image is {size}")
    device = next(metric.parameters()).device
    both = (x[None].to(device).float() / 255 for x in (image, clean))
    with torch.inference_mode():
        return [float(metric(*both))]

"""Figures of papers, to stand beside measured ones: only those that later papers reprint alike.

They are of the test sets named, under the convention named; what is not known of it is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modules.reference.released import REFERENCE_WORDS
from pipeline.evaluation.measures import FID, LPIPS, MEAN, RGB, Measure, Y

AVERAGE = "ten-task average; RGB or Y, and border: not stated"
SINGLE = "single task; Y, border not stated"
DETAILS = "details not stated"
"""Of LPIPS and FID."""


class Printed(NamedTuple):
    """What a paper prints of a method on one test set."""

    method: str
    task: str
    """MEAN for the average over the ten tasks."""
    dataset: str
    values: Mapping[Measure, float]
    """By the measure it is shown beside."""
    convention: str
    """Of PSNR and SSIM."""


def _printed(
    method: str,
    task: str,
    dataset: str,
    lpips: float,
    fid: float,
    psnr: float | None = None,
    ssim: float | None = None,
) -> Printed:
    beside, convention = (RGB, AVERAGE) if task == MEAN else (Y, SINGLE)
    found = zip((*beside, LPIPS, FID), (psnr, ssim, lpips, fid), strict=True)
    values = {measure: value for measure, value in found if value is not None}
    return Printed(method, task, dataset, values, convention)


TEN = "the ten test sets"
PUBLISHED: Sequence[Printed] = (
    _printed("DA-CLIP", MEAN, TEN, 0.127, 34.89, 27.01, 0.794),
    _printed("PromptIR", MEAN, TEN, 0.147, 48.26, 27.14, 0.859),
    _printed("NAFNet + DA-CLIP", MEAN, TEN, 0.145, 47.94, 27.22),
    _printed("AirNet", MEAN, TEN, 0.182, 64.86),
    _printed("DA-CLIP", "rainy", "Rain100H", 0.031, 11.79),
    _printed("DA-CLIP", "low-light", "LOL", 0.083, 34.03),
    _printed("DA-CLIP", "motion-blurry", "GoPro", 0.058, 6.15, 30.88),
    _printed("DA-CLIP", "hazy", "RESIDE-6k", 0.030, 5.52, 30.16, 0.936),
)
SOURCE = "DA-CLIP (Luo et al., ICLR 2024, arXiv 2310.01018), as later papers reprint it"
RECOGNISED = dict.fromkeys(REFERENCE_WORDS, 1.0) | {"motion-blurry": 0.916}
"""Share of each task's images whose degradation DA-CLIP recognises."""
RECOGNISED_MEAN = 0.992


def printed(measures: Sequence[Measure]) -> list[Printed]:
    """What is published of any of some measures."""
    return [entry for entry in PUBLISHED if any(m in entry.values for m in measures)]

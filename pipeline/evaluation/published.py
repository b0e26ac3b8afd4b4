"""Figures of papers, to stand beside measured ones: only those that later papers reprint alike.

They are of the test sets named, under the convention named; what is not known of it is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modules.metrics import Metric
from modules.reference.released import REFERENCE_WORDS
from pipeline.evaluation.summary import MEAN

AVERAGE = "ten-task average; RGB or Y, and border: not stated"
SINGLE = "single task; Y, border not stated"
OTHERS = ("lpips_alex", "fid")
DETAILS = "details not stated"
"""Of these other metrics."""


class Printed(NamedTuple):
    """What a paper prints of a method on one test set."""

    method: str
    task: str
    """MEAN for the average over the ten tasks."""
    dataset: str
    values: Mapping[str, float]
    """By the name of the metric it is shown beside."""
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
    plane, convention = ("rgb", AVERAGE) if task == MEAN else ("y", SINGLE)
    names = (f"psnr_{plane}_border4", f"ssim_{plane}_border4", *OTHERS)
    found = zip(names, (psnr, ssim, lpips, fid), strict=True)
    values = {name: value for name, value in found if value is not None}
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


def published(metrics: Sequence[Metric]) -> dict[tuple[str, str], list[Printed]]:
    """What is published of any of some metrics, by method and convention."""
    names = {metric.name for metric in metrics}
    found: dict[tuple[str, str], list[Printed]] = {}
    for entry in PUBLISHED:
        if names & set(entry.values):
            convention = DETAILS if names <= set(OTHERS) else entry.convention
            found.setdefault((entry.method, convention), []).append(entry)
    return found

"""The metrics that need trained weights, where the machine has them: LPIPS, FID and NIQE."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from modules.metrics.no_reference import NoReference, no_reference
from modules.metrics.perceptual import LpipsAlex, Unavailable, fid, lpips_alex
from modules.metrics.scores import SCORES, Score
from pipeline.tracking import TRACKER

log = logging.getLogger(__name__)

Metric = TypeVar("Metric")


class Perceptual(NamedTuple):
    """The metrics there are, and why the others are missing."""

    lpips: LpipsAlex | None
    fid: FrechetInceptionDistance | None
    no_reference: NoReference | None
    missing: dict[str, str]


def load_perceptual(device: torch.device, with_fid: bool) -> Perceptual:
    """Load what has its weights on this machine, networks to a device; FID where it is wanted."""
    missing: dict[str, str] = {}
    lpips = _load("LPIPS", lpips_alex, missing)
    inception = _load("FID", fid, missing) if with_fid else None
    return Perceptual(
        lpips and lpips.to(device),
        inception and inception.to(device),
        _load("NIQE", no_reference, missing),
        missing,
    )


def training_scores() -> dict[str, Score]:
    """What validation measures while training: LPIPS too, or a line that says why not."""
    missing: dict[str, str] = {}
    lpips = _load("LPIPS", lpips_alex, missing)
    for line in missing.items():
        log.info("%s is not measured: %s", *line)
    if lpips is None:
        TRACKER(lambda run: run.config.update({"not_measured": missing}, allow_val_change=True))
    return SCORES | ({"lpips": lpips} if lpips else {})


def _load(name: str, make: Callable[[], Metric], missing: dict[str, str]) -> Metric | None:
    try:
        return make()
    except Unavailable as error:
        missing[name] = str(error)
        return None

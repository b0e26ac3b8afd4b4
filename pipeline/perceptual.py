"""LPIPS and FID of an evaluation, where the machine has their weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from datamodules.images import Pixels, read_image
from datamodules.reader import ShardSet
from modules.perceptual import LpipsAlex, Unavailable, fid, lpips_alex
from modules.scores import SCORES, Score
from pipeline.tracking import TRACKER

log = logging.getLogger(__name__)

Metric = TypeVar("Metric")


class Perceptual(NamedTuple):
    """The perceptual metrics there are, and why the others are missing."""

    lpips: LpipsAlex | None
    fid: FrechetInceptionDistance | None
    missing: dict[str, str]


def load_perceptual() -> Perceptual:
    """Load what has its weights on this machine."""
    missing: dict[str, str] = {}
    return Perceptual(_load("LPIPS", lpips_alex, missing), _load("FID", fid, missing), missing)


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


def lpips_of(metric: LpipsAlex, image: Tensor, clean: Tensor) -> float:
    """LPIPS of 8-bit images `[3, H, W]`."""
    with torch.inference_mode():
        return float(metric(image[None].float() / 255, clean[None].float() / 255))


def fid_of(
    metric: FrechetInceptionDistance, shards: ShardSet, restored: Callable[[str], Path]
) -> dict[str, float]:
    """FID of each task's restored images against its clean ones; `restored` finds a sample's."""
    scores = {}
    for word, addresses in shards.tasks.items():
        if len(addresses) < 2:  # a covariance needs two
            continue
        metric.reset()
        for address in addresses:
            metric.update(_batch(address.image("gt")), real=True)
            metric.update(_batch(read_image(restored(address.name))), real=False)
        scores[word] = float(metric.compute())
    return scores


def _batch(image: Pixels) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]

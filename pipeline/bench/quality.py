"""Restoration quality of a trained run against the number of network calls, sampler by sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.datasets import Batch, WholeDataset, collate
from datamodules.pairs import stable_seed
from datamodules.reader import ShardSet
from modules.metrics import quantise, score_pair
from modules.restorer import Sampling, restore
from modules.samplers import SAMPLERS
from modules.time_grids import GRIDS
from pipeline.models import Models

FEW, MANY = (1, 2, 3, 5, 8, 12, 20), (50, 100)
REFERENCE = ("posterior", "uniform")
"""The published way, the only one that is followed up to many calls."""
METHODS = (
    REFERENCE,
    ("sde", "uniform"),
    ("ode", "uniform"),
    ("ddim", "uniform"),
    ("dpmpp_2m", "uniform"),
    ("dpmpp_2m_sde", "uniform"),
    ("ddim", "log_snr"),
    ("dpmpp_2m", "log_snr"),
    ("dpmpp_2m_sde", "log_snr"),
)
"""(sampler, grid)."""


class Quality(NamedTuple):
    """Means over images: PSNR in dB and SSIM, on RGB with a border of 4 pixels cut."""

    psnr: float
    ssim: float


Curves = Mapping[tuple[str, str], Mapping[int, Quality]]
"""(sampler, grid) -> calls -> quality."""


def validation_images(shards: ShardSet, per_task: int) -> list[Batch]:
    """The first images of each task, one a batch: they may differ in size."""
    samples = [address for found in shards.tasks.values() for address in found[:per_task]]
    dataset = WholeDataset(samples)
    return [collate([dataset[i]]) for i in range(len(samples))]


def quality_by_calls(
    models: Models, batches: Sequence[Batch], few: Sequence[int], many: Sequence[int], seed: int
) -> Curves:
    """Restore the images by every sampler at few calls, by the reference's at many as well."""
    restorers = [_look(models, batch) for batch in batches]
    curves: dict[tuple[str, str], dict[int, Quality]] = {}
    total = len(METHODS) * sum(few) + sum(many)
    with tqdm(total=total, desc="quality", unit="call") as progress:
        for name, grid in METHODS:
            points = curves.setdefault((name, grid), {})
            for count in [*few, *(many if (name, grid) == REFERENCE else ())]:
                sampling = Sampling(SAMPLERS[name], count, GRIDS[grid])
                points[count] = _mean([r(sampling, seed) for r in restorers], batches)
                progress.update(count)
    return curves


def measure_quality(
    models: Models, batches: Sequence[Batch], sampling: Sampling, seed: int
) -> Quality:
    """Restore the images in one way."""
    return _mean([_look(models, batch)(sampling, seed) for batch in batches], batches)


def degraded_quality(batches: Sequence[Batch]) -> Quality:
    """Of the images as they came."""
    return _mean([batch.lq for batch in batches], batches)


def _look(models: Models, batch: Batch) -> Callable[[Sampling, int], Tensor]:
    """The restoring of a batch, whose embeddings are made once."""
    degraded = batch.lq.to(models.device).float() / 255
    with torch.inference_mode():
        embeddings = models.controller.embed(degraded)

    def restored(sampling: Sampling, seed: int) -> Tensor:
        seeds = [stable_seed(seed, key) for key in batch.key]
        with torch.inference_mode():
            return quantise(restore(models.denoiser, embeddings, degraded, sampling, seeds))

    return restored


def _mean(images: Sequence[Tensor], batches: Sequence[Batch]) -> Quality:
    scores = [
        score_pair(image, clean)
        for restored, batch in zip(images, batches, strict=True)
        for image, clean in zip(restored, batch.gt, strict=True)
    ]
    return Quality(fmean(s.psnr for s in scores), fmean(s.ssim for s in scores))

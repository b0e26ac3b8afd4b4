"""Restoration quality of a trained run against the number of network calls, sampler by sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from modules.clip.daclip import Embeddings
from modules.diffusion.samplers import make_sampler
from modules.diffusion.timesteps import TIMESTEP_SPACINGS
from modules.inference.restore import RestorationModel as Models
from modules.inference.restore import Sampling, restore
from pipeline.evaluation.data import Sample, key_of
from pipeline.evaluation.scoring import ValidationMetric, validation_metrics

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
"""(sampler, timestep spacing)."""


class Quality(NamedTuple):
    """Means over images: PSNR in dB and SSIM, on RGB with a border of 4 pixels cut."""

    psnr: float
    ssim: float


Curves = Mapping[tuple[str, str], Mapping[int, Quality]]
"""(sampler, timestep spacing) -> calls -> quality."""


def some_of_each(samples: Sequence[Sample], per_task: int) -> list[Sample]:
    """The first samples of each task."""
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    return [sample for found in by_task.values() for sample in found[:per_task]]


def quality_by_calls(
    models: Models, samples: Sequence[Sample], few: Sequence[int], many: Sequence[int], seed: int
) -> Curves:
    """Restore the images by every sampler at few calls, by the reference's at many as well."""
    images = [_look(models, sample, seed) for sample in samples]
    curves: dict[tuple[str, str], dict[int, Quality]] = {}
    total = len(METHODS) * sum(few) + sum(many)
    with tqdm(total=total, desc="quality", unit="call") as progress:
        for name, spacing in METHODS:
            points = curves.setdefault((name, spacing), {})
            for count in [*few, *(many if (name, spacing) == REFERENCE else ())]:
                sampling = Sampling(make_sampler(name), count, TIMESTEP_SPACINGS[spacing])
                points[count] = _mean([image.score(sampling) for image in images])
                progress.update(count)
    return curves


def measure_quality(
    models: Models, samples: Sequence[Sample], sampling: Sampling, seed: int
) -> Quality:
    """Restore the images in one way."""
    return _mean([_look(models, sample, seed).score(sampling) for sample in samples])


def degraded_quality(samples: Sequence[Sample]) -> Quality:
    """Of the images as they came."""
    pairs = (_tensors(sample) for sample in samples)
    return _mean([_score(degraded, clean) for degraded, clean in pairs])


class _Image(NamedTuple):
    """One degraded image, whose embeddings are made once."""

    models: Models
    degraded: Tensor
    clean: Tensor
    embeddings: Embeddings
    seed: int

    def score(self, sampling: Sampling) -> Quality:
        """Restore it and compare."""
        model = self.models._replace(sampling=sampling)
        restored = restore(model, self.degraded, [self.seed], embeddings=self.embeddings)
        return _score(restored[0], self.clean)


def _look(models: Models, sample: Sample, seed: int) -> _Image:
    pixels, clean = _tensors(sample)
    return _Image(models, pixels[None], clean, models.embed(pixels[None]), seed)


def _tensors(sample: Sample) -> tuple[Tensor, Tensor]:
    degraded, clean = sample.load()
    if clean is None:
        raise ValueError(f"{key_of(sample)} has no clean image to compare with")
    return torch.from_numpy(degraded).permute(2, 0, 1), torch.from_numpy(clean).permute(2, 0, 1)


@cache
def _metrics() -> dict[str, ValidationMetric]:
    return validation_metrics(torch.device("cpu"))


def _score(image: Tensor, clean: Tensor) -> Quality:
    metrics = _metrics()
    return Quality(*(metrics[name](image[None], clean[None]).item() for name in Quality._fields))


def _mean(scores: Sequence[Quality]) -> Quality:
    return Quality(fmean(s.psnr for s in scores), fmean(s.ssim for s in scores))

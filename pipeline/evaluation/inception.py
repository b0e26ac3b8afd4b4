"""FID of each method on each task, from the images as they are kept, by one process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from datamodules.images import Pixels, read_image
from pipeline.evaluation.methods import INPUT, Method
from pipeline.evaluation.samples import Sample, key_of

Place = tuple[str, str, str]
"""Method, task, and dataset; no dataset for all of the task."""

LEAST = 2
"""Images: a covariance needs two."""
FEW = 2048
"""Images, as many as Inception has features: of fewer the covariance is singular, FID too high."""
WHY_NOT = (
    "a single image; FID is a distance between the spreads of many images, and needs two at least "
    f"(below some {FEW} it says little)"
)


def fid_of(
    metric: FrechetInceptionDistance,
    samples: Sequence[Sample],
    methods: Mapping[str, Method],
    faulty: Collection[tuple[str, str]],
) -> tuple[dict[Place, float], dict[str, str]]:
    """FID of every method against the clean images, by task and by dataset of a task.

    Args:
        metric: on the device to use.
        samples: all that were evaluated; those without a clean image do not count.
        methods: by name.
        faulty: methods and keys of the samples of which they have no image.

    Returns:
        The distances, and why there is none of some tasks.
    """
    scores: dict[Place, float] = {}
    alone = []
    whole = [sample for sample in samples if (INPUT, key_of(sample)) not in faulty]
    for (task, dataset), group in _groups(whole).items():
        if len(group) < LEAST:
            alone.append(f"{task} of {dataset}" if dataset else task)
            continue
        for method, score in _scores(metric, group, methods, faulty).items():
            scores[method, task, dataset] = score
    return scores, {f"FID of {', '.join(alone)}": WHY_NOT} if alone else {}


def _groups(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """The samples of each task, and of each dataset where a task has several."""
    whole, parts = defaultdict(list), defaultdict(list)
    for sample in samples:
        if sample.has_clean:
            whole[sample.task, ""].append(sample)
            parts[sample.task, sample.dataset].append(sample)
    tasks = [task for task, _ in parts]
    return whole | {place: group for place, group in parts.items() if tasks.count(place[0]) > 1}


def _scores(
    metric: FrechetInceptionDistance,
    group: Sequence[Sample],
    methods: Mapping[str, Method],
    faulty: Collection[tuple[str, str]],
) -> dict[str, float]:
    """Of each method on a group of samples, whose clean images are looked at once."""
    metric.reset_real_features = True
    metric.reset()
    metric.reset_real_features = False
    for sample in group:
        clean = sample.load().clean
        assert clean is not None
        metric.update(_batch(metric, clean), real=True)
    scores = {}
    for name, method in methods.items():
        own = [sample for sample in group if (name, key_of(sample)) not in faulty]
        if len(own) < LEAST:
            continue
        metric.reset()
        for sample in own:
            path = method.path(sample)
            image = sample.load().degraded if path is None else read_image(path)
            metric.update(_batch(metric, image), real=False)
        scores[name] = float(metric.compute())
    metric.reset_real_features = True
    return scores


def _batch(metric: FrechetInceptionDistance, image: Pixels) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].to(metric.device)

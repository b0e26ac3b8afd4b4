"""Scores: of single images, of the images of a task, and of validation while training."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.images import Pixels
from modules.metrics import METRICS, ImageMetric, Score, SetMetric, SetScore, Unavailable
from pipeline.evaluation.data import Sample, key_of
from pipeline.evaluation.methods import INPUT, Method, image_of
from pipeline.tracking import TRACKER

log = logging.getLogger(__name__)

ValidationMetric = Callable[[Tensor, Tensor], Tensor]
"""Of restored and clean images, uint8 `[B, 3, H, W]`: `[B]`, nan for images too small."""


class Scorers(NamedTuple):
    """The metrics that can be computed on this machine, and why the others are missing."""

    of_images: dict[ImageMetric, Score]
    of_sets: dict[SetMetric, SetScore]
    missing: dict[str, str]


class Scores(NamedTuple):
    """The scores of an image by name, and the reasons of those that it cannot have."""

    values: dict[str, float]
    missing: dict[str, str]


class SetFigure(NamedTuple):
    """The score of a set of images."""

    value: float
    images: int


Place = tuple[str, str, str]
"""Method, task, and dataset; no dataset for all of the task."""
SetFigures = Mapping[str, Mapping[Place, SetFigure]]
"""By the name of the metric."""


def load_scorers(device: torch.device, with_sets: bool, only_validation: bool = False) -> Scorers:
    """Load the metrics whose weights are on this machine.

    Args:
        device: of those that are networks.
        with_sets: whether to load those of sets of images.
        only_validation: whether to leave out what validation does not measure.
    """
    scorers = Scorers({}, {}, {})
    for metric in METRICS.values():
        if only_validation and not metric.in_validation:
            continue
        try:
            if isinstance(metric, ImageMetric):
                scorers.of_images[metric] = metric.load(device)
            elif isinstance(metric, SetMetric) and with_sets:
                scorers.of_sets[metric] = metric.load(device)
        except Unavailable as error:
            scorers.missing[metric.label] = str(error)
    return scorers


def score(image: Pixels, clean: Pixels | None, scorers: Mapping[ImageMetric, Score]) -> Scores:
    """Measure an image; what it cannot have is missing, such as for its size.

    Args:
        image: RGB.
        clean: of the same shape; without it only metrics that need no reference are computed.
        scorers: the metrics to compute.

    Raises:
        ValueError: the two differ in shape.
    """
    if clean is not None and image.shape != clean.shape:
        raise ValueError(
            f"the image and the clean one differ in shape: {image.shape} and {clean.shape}"
        )
    # The order of sums follows that in memory: equal images get equal scores.
    image = np.ascontiguousarray(image)
    clean = None if clean is None else np.ascontiguousarray(clean)
    scores = Scores({}, {})
    for metric, measure in scorers.items():
        if clean is None and metric.needs_reference:
            continue
        try:
            metric.check_size(image)
            scores.values[metric.name] = measure(image, clean)
        except ValueError as error:
            scores.missing[metric.name] = str(error)
    return scores


def validation_metrics(device: torch.device) -> dict[str, ValidationMetric]:
    """What validation measures while training, by short name; what is missing is logged."""
    scorers = load_scorers(device, with_sets=False, only_validation=True)
    for line in scorers.missing.items():
        log.info("%s is not measured: %s", *line)
    if missing := scorers.missing:
        TRACKER(lambda run: run.config.update({"not_measured": missing}, allow_val_change=True))
    return {
        metric.short: _batched(metric, measure) for metric, measure in scorers.of_images.items()
    }


def _batched(metric: ImageMetric, measure: Score) -> ValidationMetric:
    def scores(restored: Tensor, clean: Tensor) -> Tensor:
        pairs = zip(map(pixels, restored), map(pixels, clean), strict=True)
        found = [score(*pair, {metric: measure}) for pair in pairs]
        return torch.tensor([values.get(metric.name, math.nan) for values, _ in found])

    return scores


def pixels(image: Tensor) -> Pixels:
    """An image `[H, W, 3]` of a tensor `[3, H, W]`, both uint8."""
    return image.permute(1, 2, 0).cpu().numpy()


def score_sets(
    scorers: Mapping[SetMetric, SetScore],
    samples: Sequence[Sample],
    methods: Mapping[str, Method],
    faulty: Collection[tuple[str, str]],
) -> tuple[SetFigures, dict[str, str]]:
    """Scores of every method against the clean images, by task and by dataset of a task.

    Args:
        scorers: the metrics to compute.
        samples: all that were evaluated; those without a clean image do not count.
        methods: by name.
        faulty: methods and keys of the samples of which they have no image.

    Returns:
        The scores, and why some tasks have none.
    """
    figures: dict[str, dict[Place, SetFigure]] = {}
    missing = {}
    whole = [sample for sample in samples if (INPUT, key_of(sample)) not in faulty]
    for metric, measure in scorers.items():
        found = figures[metric.name] = {}
        small = []
        for (task, dataset), group in _groups(whole).items():
            if len(group) < metric.min_images:
                small.append(f"{task} of {dataset}" if dataset else task)
                continue
            measure.set_reference(_clean(group))
            for name, method in methods.items():
                own = [sample for sample in group if (name, key_of(sample)) not in faulty]
                if len(own) >= metric.min_images:
                    value = measure(image_of(method, sample) for sample in own)
                    found[name, task, dataset] = SetFigure(value, len(own))
        if small:
            missing[f"{metric.label} of {', '.join(small)}"] = metric.too_few
    return figures, missing


def _clean(group: Sequence[Sample]) -> Iterator[Pixels]:
    for sample in group:
        clean = sample.load().clean
        assert clean is not None
        yield clean


def _groups(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """The samples of each task, and of each dataset where a task has several."""
    whole, parts = defaultdict(list), defaultdict(list)
    for sample in samples:
        if sample.has_clean:
            whole[sample.task, ""].append(sample)
            parts[sample.task, sample.dataset].append(sample)
    tasks = [task for task, _ in parts]
    return whole | {place: group for place, group in parts.items() if tasks.count(place[0]) > 1}

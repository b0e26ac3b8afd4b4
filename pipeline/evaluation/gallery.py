"""The worst and the best cases of each task, as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from datamodules.images import Pixels
from modules.metrics import METRICS
from modules.metrics.psnr import PSNR
from pipeline.evaluation.ablations import ABLATIONS
from pipeline.evaluation.data import Sample, key_of
from pipeline.evaluation.methods import INPUT, MODEL, Method, image_of
from pipeline.evaluation.rows import Row

SIDE = 256
"""Pixels of the longer side of a picture, at most."""
QUALITY = 80
CLEAN = "clean"


class Picture(NamedTuple):
    """One image of a case."""

    label: str
    score: str
    image: Pixels


class Case(NamedTuple):
    """A sample with what was made of it."""

    task: str
    name: str
    dataset: str
    found: str
    """What the controller took it for; empty where none looked."""
    gain: float | None
    """PSNR over that of the input, in dB; None without a clean image."""
    pictures: Sequence[Picture]


def gallery(
    rows: Sequence[Row],
    samples: Sequence[Sample],
    methods: Mapping[str, Method],
    per_task: int,
) -> list[Case]:
    """Of each task the samples that gained least and most, the worst first.

    Samples whose own images are damaged are left out.

    The gain is the model's, or where there is no model that of the first other method.

    Args:
        rows: of all methods.
        samples: all that were evaluated.
        methods: by name.
        per_task: how many of the worst, and of the best.
    """
    shown = [name for name in methods if name not in ABLATIONS]
    judged = MODEL if MODEL in methods else shown[1]
    by_key = {(row.method, row.sample): row for row in rows}
    gains = {}
    samples = [s for s in samples if not by_key[INPUT, key_of(s)].fault]
    for sample in samples:
        scores = [by_key[name, key_of(sample)].scores.get(PSNR) for name in (judged, INPUT)]
        gains[key_of(sample)] = _gain(*scores)
    cases = []
    for task in sorted({sample.task for sample in samples}):
        own = [sample for sample in samples if sample.task == task]
        own.sort(key=lambda s: (gains[key_of(s)] is None, gains[key_of(s)]))
        for sample in _ends(own, per_task):
            of_sample = {name: by_key[name, key_of(sample)] for name in shown}
            cases.append(_case(sample, of_sample, methods, gains[key_of(sample)]))
    return cases


def data_url(image: Pixels) -> str:
    """An image to stand inside a page."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _gain(score: float | None, before: float | None) -> float | None:
    if score is None or before is None:
        return None
    return 0.0 if score == before else score - before  # both may be infinite


def _ends(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The first and the last of some samples, each once."""
    if len(samples) <= 2 * count:
        return list(samples)
    return [*samples[:count], *samples[len(samples) - count :]]


def _case(
    sample: Sample, rows: Mapping[str, Row], methods: Mapping[str, Method], gain: float | None
) -> Case:
    pair = sample.load()
    pictures = []
    for name, row in rows.items():
        if row.fault:
            continue
        image = image_of(methods[name], sample)
        pictures.append(Picture(name, _score(row), _small(image)))
    if pair.clean is not None:
        pictures.append(Picture(CLEAN, "", _small(pair.clean)))
    looked = rows.get(MODEL)
    found = f"{looked.found} ({looked.probability:.0%})" if looked and looked.found else ""
    return Case(sample.task, sample.name, sample.dataset, found, gain, pictures)


def _small(image: Pixels) -> Pixels:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _score(row: Row) -> str:
    """The first of the metrics that the image has."""
    for metric in METRICS.values():
        if metric.name in row.scores:
            text = metric.text(row.scores[metric.name])
            return f"{text} {metric.unit}" if metric.unit else f"{metric.label} {text}"
    return ""

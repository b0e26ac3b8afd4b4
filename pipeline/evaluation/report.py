"""The report of an evaluation: one HTML page with its pictures inside."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from datamodules.files import atomic_write
from pipeline.evaluation.gallery import Case, data_url
from pipeline.evaluation.measures import (
    FID,
    LPIPS,
    NO_REFERENCE,
    RGB,
    RGB_PLAIN,
    Y_PLAIN,
    Y,
)
from pipeline.evaluation.memory import MEANING
from pipeline.evaluation.published import RECOGNISED, RECOGNISED_MEAN, SOURCE
from pipeline.evaluation.summary import Summary
from pipeline.evaluation.tables import Table, ablated, by_dataset, by_task, compared
from pipeline.stage import code_version

PACKAGES = ("torch", "open_clip_torch", "torchmetrics", "lpips")
SHORT_MINUTES = 60
"""A training below this says nothing of the method."""


class Training(NamedTuple):
    """How long a stage of this run trained."""

    name: str
    steps: int
    minutes: float | None
    """None where it went on after an interruption: how long it trained before is not known."""
    afresh: bool
    """Whether it started from random weights, or from CLIP's."""


def write_report(
    path: Path,
    summary: Summary,
    cases: Sequence[Case],
    records: Sequence[Mapping[str, Any]],
    settings: Mapping[str, str],
    device: str,
) -> None:
    """Write the page, self-contained.

    Args:
        path: of the page.
        summary: the figures.
        cases: the gallery.
        records: of the trainings of the model, where it is this run's.
        settings: what the figures were made with, to list at the end.
        device: `cpu` or `cuda`.
    """
    environment = Environment(
        loader=PackageLoader("pipeline.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = data_url
    trainings = _trainings(records)
    page = environment.get_template("report.html.j2").render(
        summary=summary,
        main=by_task("PSNR and SSIM on RGB", RGB, compared(summary), summary),
        further=_further(summary),
        ablations=_ablations(summary),
        cases=cases,
        trainings=trainings,
        short=all(_is_short(t) for t in trainings),
        recognised=RECOGNISED,
        recognised_mean=RECOGNISED_MEAN,
        source=SOURCE,
        memory=MEANING[device],
        settings=dict(settings) | _versions(),
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _further(summary: Summary) -> list[Table]:
    methods = compared(summary)
    tables = [
        by_task("PSNR and SSIM on luma", Y, methods, summary),
        by_task("PSNR and SSIM on RGB, nothing cut", RGB_PLAIN, methods, summary),
        by_task("PSNR and SSIM on luma, nothing cut", Y_PLAIN, methods, summary),
        by_task("LPIPS", [LPIPS], methods, summary),
        by_task("FID", [FID], methods, summary),
        by_task("Without a reference image", [NO_REFERENCE], methods, summary),
        by_dataset(RGB, summary),
    ]
    return [table for table in tables if table]


def _ablations(summary: Summary) -> list[Table]:
    methods = ablated(summary)
    if not methods:
        return []
    pairs = (("PSNR and SSIM on RGB", RGB), ("LPIPS", [LPIPS]), ("FID", [FID]))
    tables = [by_task(title, measures, methods, summary) for title, measures in pairs]
    return [table for table in tables if table]


def _trainings(records: Sequence[Mapping[str, Any]]) -> list[Training]:
    """What the records of both trainings say."""
    trainings = list[Training]()
    for record in records:
        if "finished" in record:
            begin, end = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
            minutes = (end - begin).total_seconds() / 60 if record.get("starts", 1) == 1 else None
            settings = record["config"][record["stage"]]
            afresh = settings["init_from"] is None
            trainings.append(Training(record["stage"], settings["max_steps"], minutes, afresh))
    return trainings


def _is_short(training: Training) -> bool:
    return training.afresh and training.minutes is not None and training.minutes < SHORT_MINUTES


def _versions() -> dict[str, str]:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {"code": code_version(), "packages": f"Python {platform.python_version()}, {packages}"}

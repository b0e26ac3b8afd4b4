"""The curves of a run: what its trainings wrote to CSV, over all their starts."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modules.metrics import METRICS
from pipeline.tracking import CSV_LOG

Points = list[tuple[int, float]]
"""(step, value), in order of the steps."""
NO_CURVES = ("step", "epoch")


class Line(NamedTuple):
    """One curve of a panel."""

    label: str
    points: Points


class Group(NamedTuple):
    """Metrics of a run that share a panel."""

    title: str
    metrics: Sequence[str]
    log: bool
    """Whether the axis may be logarithmic."""


class Panel(NamedTuple):
    """Curves to be drawn over each other."""

    title: str
    lines: Sequence[Line]
    log: bool
    """Whether the axis may be logarithmic."""
    part: bool
    """Whether it is one of many, each of a task or the like."""
    runs: bool
    """Whether each curve is a run's: they may lie on each other, and all are to be seen then."""


LOG = ("loss", "content_loss", "degradation_loss", "loss_by_time", "grad_norm")
"""Metrics whose changes while they are small count as much as those while they are large."""
TITLES = {
    "loss": "Loss",
    "content_loss": "Content loss (captions)",
    "degradation_loss": "Degradation loss (words)",
    "loss_by_time": "Loss by diffusion time t, since the last validation",
    **{
        f"val_{m.short}": m.chart_title(" of validation")
        for m in METRICS.values()
        if m.in_validation
    },
    "degradation_accuracy": "Share of degradations recognised in validation",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradients",
    "drawn": "Share of the training draws",
    "skipped": "Damaged training samples passed over",
    "images_per_s": "Images a second, all ranks",
    "data_wait": "Share of the time spent waiting for data",
    "gpu_peak_gb": "Peak GPU memory, GB",
}
"""Titles of panels, in their order; metrics without one come last under their own names."""


def read_curves(stage: Path) -> dict[str, Points]:
    """Metric -> points of a stage.

    Where a training went on from a checkpoint, steps are done again: the later start's count.
    """
    curves: dict[str, Points] = {}
    versions = (stage / CSV_LOG).glob("version_*/metrics.csv")
    for path in sorted(versions, key=lambda path: int(path.parent.name.partition("_")[2])):
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["step"] or "").isdecimal()]
        first = min((int(row["step"]) for row in rows), default=0)
        for metric, points in curves.items():
            curves[metric] = [point for point in points if point[0] < first]
        for row in sorted(rows, key=lambda row: int(row["step"])):
            for metric, text in row.items():
                if metric not in NO_CURVES and text:
                    curves.setdefault(metric, []).append((int(row["step"]), float(text)))
    return curves


def groups(metrics: Iterable[str]) -> list[Group]:
    """Which metrics of a stage share a panel: as `panels` draws them of one run."""
    places: dict[str, list[str]] = {}
    for metric in _shown(metrics):
        places.setdefault(_group(metric), []).append(metric)
    return [Group(_title(place), found, _base(place) in LOG) for place, found in places.items()]


def panels(runs: Mapping[str, Mapping[str, Points]]) -> list[Panel]:
    """The panels of a stage.

    Args:
        runs: name of a run -> its curves. Of one, metrics that belong together share a panel; of
            several, each metric has its own, with a line for each run.
    """
    lines: dict[str, list[Line]] = {}
    for metric in _shown(metric for curves in runs.values() for metric in curves):
        for name, curves in runs.items():
            if metric in curves:
                alone = len(runs) == 1
                place, label = (_group(metric), _label(metric)) if alone else (metric, name)
                lines.setdefault(place, []).append(Line(label, curves[metric]))
    several = len(runs) > 1
    return [
        Panel(_title(place), found, _base(place) in LOG, several and "/" in place, several)
        for place, found in lines.items()
    ]


def _shown(metrics: Iterable[str]) -> list[str]:
    """The metrics that have a place in a panel, in their order."""
    return sorted({m for m in metrics if "_degraded/" not in m}, key=_place)


def _base(metric: str) -> str:
    """`val_psnr` of `val_psnr`, `val_psnr_degraded` and `val_psnr/rainy`; `lr` of `lr-AdamW`."""
    base = metric.partition("/")[0].removesuffix("_degraded")
    return "lr" if base.startswith("lr-") else base


def _group(metric: str) -> str:
    """The panel of one run that a metric belongs to: that of its base, or its base by part."""
    base = _base(metric)
    return f"{base}/" if "/" in metric and base not in ("lr", "drawn", "loss_by_time") else base


def _title(name: str) -> str:
    base, slash, part = name.partition("/")
    if _base(name) == "lr":
        return TITLES["lr"] + (f": {name}" if slash else "")
    title = TITLES.get(_base(name), base) + (", degraded" if base.endswith("_degraded") else "")
    return title + (f": {part or 'by task'}" if slash else "")


def _label(metric: str) -> str:
    if _base(metric) == "lr":
        return metric
    if metric.startswith("val_") and "/" not in metric:
        return "degraded" if metric.endswith("_degraded") else "restored"
    return metric.partition("/")[2]


def _place(metric: str) -> tuple[float, str, int, str]:
    order, base = list(TITLES), _base(metric)
    place = order.index(base) if base in TITLES else math.inf
    first = metric.partition("/")[2].partition("-")[0]
    return place, _group(metric), int(first) if first.isdecimal() else 0, metric

"""Where the figures of a training go: CSV files in the stage's folder, and W&B."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from pipeline.tracking import TRACKER

METRICS = "metrics"
"""Folder of the CSV files below the stage's: `version_N/metrics.csv` is that of its Nth start."""


class WandbMetrics(Logger):
    """The same rows as in the CSV files, to the stage's run on W&B."""

    @property
    def name(self) -> str:
        """Of the folder that Lightning would put files in."""
        return METRICS

    @property
    def version(self) -> str:
        """Of the same; none, for the progress bar to show that of the CSV files."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row."""
        TRACKER(lambda run: run.log(dict(metrics) | {"step": step}))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run has the whole configuration already."""


def loggers(folder: Path) -> list[Logger]:
    """The loggers of a training whose stage keeps its files in a folder."""
    csv = CSVLogger(folder, name=METRICS)
    return [csv, WandbMetrics()] if TRACKER.active else [csv]

"""`make dashboard`: the curves of one run, or of several over each other, on one HTML page.

With `logger=wandb` they become a saved view on Weights & Biases too.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from datamodules.files import atomic_write, read_json
from pipeline.chain import STAGES
from pipeline.charts import chart
from pipeline.config import Config
from pipeline.curves import Points, panels, read_curves
from pipeline.sections import DashboardConfig, LoggerConfig
from pipeline.stage import read_record
from pipeline.stages.evaluate import FIGURES, REPORT
from pipeline.stages.evaluate import STAGE as EVALUATION
from pipeline.stages.train_controller import STAGE as CONTROLLER
from pipeline.stages.train_restorer import STAGE as RESTORER
from pipeline.training.callbacks import SAMPLES

log = logging.getLogger(__name__)

PAGE = "dashboard.html"


class Run(NamedTuple):
    """What the page shows of a run."""

    name: str
    records: Mapping[str, Mapping[str, Any]]
    """Stage -> its `stage.json`, of the stages begun."""
    curves: Mapping[str, Mapping[str, Points]]
    """Stage that trains -> metric -> points."""
    samples: str | None
    """Picture of the last validation's samples, as a data URL."""
    evaluation: Mapping[str, Any] | None
    """The figures of the evaluation."""
    report: str
    """Address of its page, seen from this one."""


def run(config: Config) -> None:
    """Write the page of `run_dir`, with the runs in `dashboard.compare` beside it.

    Raises:
        FileNotFoundError: a folder has no stage that was begun.
    """
    folders = [config.run_dir, *map(Path, config[DashboardConfig].compare)]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    page = folders[0] / PAGE
    runs = [_run(name, folder, page) for name, folder in zip(names, folders, strict=True)]
    with atomic_write(page) as file:
        file.write(_render(runs).encode())
    log.info("dashboard: %s", page)
    if config[LoggerConfig].project is not None:
        _show_on_wandb(config, folders, runs)


def _show_on_wandb(config: Config, folders: list[Path], runs: list[Run]) -> None:
    from pipeline.workspace import show

    metrics = {
        stage.name: {metric for run in runs for metric in run.curves[stage.name]}
        for stage in (CONTROLLER, RESTORER)
    }
    show(config, folders, metrics, [run.evaluation for run in runs if run.evaluation])


def _run(name: str, folder: Path, page: Path) -> Run:
    stages = [stage.name for stage in STAGES.values()]
    records = {stage: record for stage in stages if (record := read_record(folder / stage))}
    if not records:
        raise FileNotFoundError(f"{folder} is no folder of a run: none of its stages has begun")
    samples, figures = folder / RESTORER.name / SAMPLES, folder / EVALUATION.name / FIGURES
    return Run(
        name=name,
        records=records,
        curves={s.name: read_curves(folder / s.name) for s in (CONTROLLER, RESTORER)},
        samples=_data_url(samples.read_bytes()) if samples.is_file() else None,
        evaluation=read_json(figures) if figures.is_file() else None,
        report=os.path.relpath(folder / EVALUATION.name / REPORT, page.parent),
    )


def _render(runs: list[Run]) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline", "."), autoescape=True, undefined=StrictUndefined
    )
    trained = {
        stage: curves
        for stage in (CONTROLLER.name, RESTORER.name)
        if (curves := {run.name: run.curves[stage] for run in runs if run.curves[stage]})
    }
    return environment.get_template("dashboard.html.j2").render(
        runs=runs,
        charts={s: [(chart(p), p.part) for p in panels(curves)] for s, curves in trained.items()},
        no_lpips=RESTORER.name in trained
        and not any("val_lpips" in curves for curves in trained[RESTORER.name].values()),
        by_task=_by_task(runs),
    )


def _by_task(runs: list[Run]) -> list[tuple[str, str, list[tuple[float, float] | None]]]:
    """(score, task, (degraded, restored) of each run's last validation)."""
    curves = [run.curves[RESTORER.name] for run in runs]
    keys = dict.fromkeys(
        key for found in curves for key in found if f"{key.replace('/', '_degraded/')}" in found
    )
    rows = []
    for key in keys:
        score, _, task = key.removeprefix("val_").partition("/")
        before = key.replace("/", "_degraded/")
        if task:
            cells = [(c[before][-1][1], c[key][-1][1]) if key in c else None for c in curves]
            rows.append((score, task, cells))
    return rows


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"

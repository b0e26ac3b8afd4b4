"""The dashboard on Weights & Biases: the panels of `make dashboard` as a saved view of the project.

The view is named as the run is there, and its address is kept in the run's folder, so that the
next one takes its place. Nothing here ends the dashboard or keeps it waiting for long.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import wandb
import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws

from datamodules.files import atomic_write
from modules.metrics import METRICS
from pipeline.chain import STAGES
from pipeline.charts import COLOURS
from pipeline.config import Config
from pipeline.curves import groups
from pipeline.sections import LoggerConfig
from pipeline.stages.evaluate import STAGE as EVALUATION
from pipeline.stages.train_controller import STAGE as CONTROLLER
from pipeline.stages.train_restorer import STAGE as RESTORER
from pipeline.tracking import ID, group_of, has_key, one_line
from pipeline.training import callbacks

log = logging.getLogger(__name__)

VIEW = "wandb_view.txt"
"""In the folder of a run: the address of its view."""
LIMIT_S = 10.0
"""How long the dashboard waits at most for the view to be saved."""
COLUMNS = 3
DRAWN = (CONTROLLER, RESTORER, EVALUATION)
"""The stages with something to draw."""
SCORES = {m.short: m.chart_title() for m in METRICS.values() if m.in_validation}
"""Scores of an evaluation with a chart, and its title."""
BY_TASK = "psnr"
"""The score that has a chart for each task too."""

Result = TypeVar("Result")


def show(
    config: Config,
    folders: Sequence[Path],
    metrics: Mapping[str, Collection[str]],
    evaluations: Iterable[Mapping[str, Any]],
) -> None:
    """Save the view of a run, with further ones beside it, and say where it is, or why it is not.

    Args:
        config: of the run.
        folders: of the run and of the further ones.
        metrics: stage that trains -> the metrics it has logged.
        evaluations: the figures of the evaluations.
    """
    try:
        shown = sections(metrics, evaluations)
        address = _within(LIMIT_S, lambda: _save(config, folders, shown))
    except Exception as error:  # whatever it is, the page has been written
        reason = one_line(error) or f"no answer within {LIMIT_S:.0f} s"
        log.warning("W&B: the dashboard is not there: %s", reason)
    else:
        log.info("W&B: %s", address)


def sections(
    metrics: Mapping[str, Collection[str]], evaluations: Iterable[Mapping[str, Any]]
) -> list[ws.Section]:
    """The sections of a view; arguments as of `show`."""
    found = {stage.capitalize(): _plots(names) for stage, names in metrics.items()}
    if metrics[CONTROLLER.name]:
        found["Degradations: actual and recognised"] = [_confusion()]
    if metrics[RESTORER.name]:
        found["Samples of validation"] = [
            wr.WeavePanelSummaryTable(table_name=callbacks.TABLE),
            wr.MediaBrowser(title="Degraded, restored, clean", media_keys=[callbacks.SHEET]),
        ]
    found["Evaluation"] = _bars(evaluations)
    return [
        ws.Section(
            name=name,
            panels=panels,
            is_open=True,
            layout_settings=ws.SectionLayoutSettings(
                columns=min(COLUMNS, len(panels)), rows=math.ceil(len(panels) / COLUMNS)
            ),
        )
        for name, panels in found.items()
        if panels
    ]


def runset(runs: Sequence[str]) -> ws.RunsetSettings:
    """Some runs, by run and stage.

    Each stage has a colour of its own: what several of them log, such as `grad_norm`, is drawn of
    all, for panels there have no choice of runs.
    """
    drawn = [ws.GroupPath(run, stage.name) for run in runs for stage in DRAWN]
    return ws.RunsetSettings(
        filters=ws.And(ws.Metric("Group").isin(list(runs))),
        groupby=[ws.Metric("Group"), ws.Metric("JobType")],
        group_colors={path: COLOURS[n % len(COLOURS)] for n, path in enumerate(drawn)},
    )


def _plots(metrics: Iterable[str]) -> list[Any]:
    return [
        wr.LinePlot(title=group.title, x="step", y=list(group.metrics), log_y=group.log)
        for group in groups(metrics)
    ]


def _confusion() -> wr.CustomChart:
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": f"{callbacks.CONFUSION}_table"}},
        chart_name=callbacks.CONFUSION_CHART,
        chart_fields=callbacks.CONFUSION_FIELDS,
        chart_strings=callbacks.CONFUSION_STRINGS,
    )


def _bars(evaluations: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Degraded beside restored: the scores of the mean, then one of each task."""
    places = dict.fromkeys(place for e in evaluations for place in _scored(e))
    return [
        wr.BarPlot(
            title=f"{SCORES[score]}: {task or 'mean of the tasks'}",
            metrics=[f"{name}/{task}" if task else name for name in (score, f"{score}_degraded")],
        )
        for task, score in places
    ]


def _scored(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(task, score) of which there are figures; the mean is the task ""."""
    for found in (evaluation["mean"] | {"word": ""}, *evaluation["tasks"]):
        for score in SCORES:
            both = score in found["restored"] and score in found["degraded"]
            if both and (not found["word"] or score == BY_TASK):
                yield found["word"], score


def _save(config: Config, folders: Sequence[Path], shown: list[ws.Section]) -> str:
    """Create the view, or replace the one before; its address."""
    settings = wandb.setup(wandb.Settings(silent=True, x_graphql_retry_max=1)).settings
    if settings.mode != "online":
        raise ConnectionError(f"WANDB_MODE is {settings.mode}")
    if not has_key(settings.base_url):
        raise ConnectionError(f"no key for {settings.base_url}; `wandb login` asks for it")
    runs = [group_of(folder) for folder in folders if (folder / ID).is_file()]
    if not runs:
        raise FileNotFoundError(f"no stage of {folders[0]} has run with logger=wandb")
    entity, project = settings.entity or wandb.Api().default_entity, config[LoggerConfig].project
    view = _last(folders[0] / VIEW, str(entity), str(project))
    view.name, view.sections, view.runset_settings = runs[0], shown, runset(runs)
    view.settings = ws.WorkspaceSettings(x_axis="step", max_runs=len(STAGES) * len(runs))
    address = str(view.save().url)
    with atomic_write(folders[0] / VIEW) as file:
        file.write(address.encode())
    return address


def _last(path: Path, entity: str, project: str) -> ws.Workspace:
    """The view whose address is kept, or a new one if there is none in the project."""
    if path.is_file():
        with suppress(ValueError):  # it has been removed from the server
            view: ws.Workspace = ws.Workspace.from_url(path.read_text(encoding="utf-8"))
            if (view.entity, view.project) == (entity, project):
                return view
    return ws.Workspace(entity=entity, project=project)


def _within(seconds: float, action: Callable[[], Result]) -> Result:
    """What an action gives; if it takes longer than some seconds, it is left to itself.

    Raises:
        TimeoutError: it has taken longer.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future.result(seconds)

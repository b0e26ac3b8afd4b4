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
from modules.metrics import METRICS, Metric, SetMetric, tables
from pipeline.evaluation.ablations import ABLATIONS, TITLES
from pipeline.evaluation.gallery import Case, data_url
from pipeline.evaluation.memory import MEANING
from pipeline.evaluation.methods import INPUT, MODEL
from pipeline.evaluation.published import RECOGNISED, RECOGNISED_MEAN, SOURCE, Printed, published
from pipeline.evaluation.summary import MEAN, Group, Summary
from pipeline.stage import code_version

PACKAGES = ("torch", "open_clip_torch", "torchmetrics", "lpips")
SHORT_MINUTES = 60
"""A training below this says nothing of the method."""


ABOUT = {INPUT: "the degraded image", MODEL: "as it is", **TITLES}
"""What a method of ours is."""


class Value(NamedTuple):
    """One number in a cell."""

    text: str
    note: str
    """Its interval, or what else is to stand beside it."""
    best: bool


Cell = Sequence[Value | None]
"""A value of each metric."""


class Line(NamedTuple):
    """One row of a table."""

    head: str
    note: str
    images: int
    cells: Sequence[Cell]


class Column(NamedTuple):
    """What a column is of."""

    head: str
    note: str
    published: bool


class Table(NamedTuple):
    """A table of the page, with one or two metrics in each cell."""

    title: str
    metrics: Sequence[Metric]
    columns: Sequence[Column]
    lines: Sequence[Line]


class Training(NamedTuple):
    """How long a stage of this run trained."""

    name: str
    steps: int
    minutes: float | None
    """None where it went on after an interruption: how long it trained before is not known."""
    afresh: bool
    """Whether it started from random weights, or from CLIP's."""

    @property
    def is_short(self) -> bool:
        """Whether it is too short to say anything of the method."""
        return self.afresh and self.minutes is not None and self.minutes < SHORT_MINUTES


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
    trained = trainings(records)
    main, further, ablations = _tables(summary)
    page = environment.get_template("report.html.j2").render(
        summary=summary,
        main=main,
        further=further,
        ablations=ablations,
        cases=cases,
        trainings=trained,
        short=all(training.is_short for training in trained),
        recognised=RECOGNISED,
        recognised_mean=RECOGNISED_MEAN,
        source=SOURCE,
        memory=MEANING[device],
        settings=dict(settings) | _versions(),
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _tables(summary: Summary) -> tuple[Table | None, list[Table], list[Table]]:
    """The main table, further ones, and those of the ablations."""
    every = tables(METRICS.values())
    main, *further = (
        by_task(title, metrics, summary.compared, summary) for title, metrics in every.items()
    )
    further.append(by_dataset(next(iter(every.values())), summary))
    ablations = [
        by_task(title, metrics, summary.ablated, summary)
        for title, metrics in every.items()
        if summary.ablated and any(m.in_validation or isinstance(m, SetMetric) for m in metrics)
    ]
    return main, [table for table in further if table], [table for table in ablations if table]


def trainings(records: Sequence[Mapping[str, Any]]) -> list[Training]:
    """What the records of both trainings say."""
    found = list[Training]()
    for record in records:
        if "finished" in record:
            begin, end = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
            minutes = (end - begin).total_seconds() / 60 if record.get("starts", 1) == 1 else None
            settings = record["config"][record["stage"]]
            afresh = settings["init_from"] is None
            found.append(Training(record["stage"], settings["max_steps"], minutes, afresh))
    return found


def _versions() -> dict[str, str]:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {"code": code_version(), "packages": f"Python {platform.python_version()}, {packages}"}


def by_task(
    title: str, metrics: Sequence[Metric], methods: Sequence[str], summary: Summary
) -> Table | None:
    """Of each task and of their mean; None where no method has any of the metrics.

    Published figures stand beside, unless ablations are compared.
    """
    papers = {} if set(methods) & set(ABLATIONS) else published(metrics)
    lines = []
    for place in (*summary.tasks, MEAN):
        groups = [summary.group(method, place) for method in methods]
        cells = _cells(groups, metrics, len(summary.tasks))
        cells += [_printed_cell(paper, place, metrics) for paper in papers.values()]
        lines.append(_line(place, groups, cells))
    if not any(any(cell) for line in lines for cell in line.cells[: len(methods)]):
        return None
    heads = [Column(method, f"published; {convention}", True) for method, convention in papers]
    return Table(title, metrics, [*_columns(methods), *heads], lines)


def by_dataset(metrics: Sequence[Metric], summary: Summary) -> Table | None:
    """Of each dataset of the tasks that have several; None where none has."""
    methods = summary.compared
    parts = [group for group in summary.groups if not group.whole]
    lines = []
    for task, dataset in dict.fromkeys((group.task, group.dataset) for group in parts):
        found = {g.method: g for g in parts if (g.task, g.dataset) == (task, dataset)}
        groups = [found.get(method) for method in methods]
        lines.append(_line(task, groups, _cells(groups, metrics, 1)))
    return Table("By dataset", metrics, _columns(methods), lines) if lines else None


def _columns(methods: Sequence[str]) -> list[Column]:
    return [Column(method, ABOUT.get(method, "its outputs"), False) for method in methods]


def _line(place: str, groups: Sequence[Group | None], cells: Sequence[Cell]) -> Line:
    largest = max((group for group in groups if group), key=lambda group: group.images)
    return Line(place, largest.dataset, largest.images, cells)


def _cells(groups: Sequence[Group | None], metrics: Sequence[Metric], tasks: int) -> list[Cell]:
    """For each group its values; the best of each metric is marked."""
    best = {metric: _best(groups, metric) for metric in metrics}
    return [[_value(group, m, best[m], tasks) for m in metrics] for group in groups]


def _best(groups: Sequence[Group | None], metric: Metric) -> str:
    """The best value as it is shown; none where all are shown alike."""
    found = [g.figures[metric.name].mean for g in groups if g and metric.name in g.figures]
    if len({metric.text(value) for value in found}) < 2:
        return ""
    return metric.text(max(found) if metric.higher_is_better else min(found))


def _value(group: Group | None, metric: Metric, best: str, tasks: int) -> Value | None:
    figure = group.figures.get(metric.name) if group else None
    if group is None or figure is None:
        return None
    notes = []
    if figure.low is not None and figure.high is not None:
        notes.append("–".join(metric.text(end) for end in (figure.low, figure.high)))
    if group.task == MEAN and figure.tasks < tasks:
        notes.append(f"of {figure.tasks} tasks")
    text = metric.text(figure.mean)
    return Value(text, ", ".join(notes), text == best)


def _printed_cell(paper: Sequence[Printed], place: str, metrics: Sequence[Metric]) -> Cell:
    entry = next((entry for entry in paper if entry.task == place), None)
    if entry is None:
        return [None for _ in metrics]
    found = [(m, entry.values.get(m.name)) for m in metrics]
    return [None if v is None else Value(m.text(v), entry.dataset, False) for m, v in found]

"""The figures as tables of the page: tasks by methods, published figures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.evaluation.ablations import ABLATIONS, TITLES
from pipeline.evaluation.measures import FID, LPIPS, MEAN, Measure
from pipeline.evaluation.methods import INPUT, MODEL
from pipeline.evaluation.published import DETAILS, Printed, printed
from pipeline.evaluation.summary import Group, Summary

ABOUT = {INPUT: "the degraded image", MODEL: "as it is", **TITLES}
"""What a method of ours is."""


class Value(NamedTuple):
    """One number in a cell."""

    text: str
    note: str
    """Its interval, or what else is to stand beside it."""
    best: bool


Cell = Sequence[Value | None]
"""A value of each measure."""


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
    """A table of the page, with one or two measures in each cell."""

    title: str
    measures: Sequence[Measure]
    columns: Sequence[Column]
    lines: Sequence[Line]


def compared(summary: Summary) -> list[str]:
    """The methods that compete: all but the ablations."""
    return [method for method in summary.methods if method not in ABLATIONS]


def ablated(summary: Summary) -> list[str]:
    """The model and its ablations; none where there are no ablations."""
    found = [method for method in summary.methods if method in ABLATIONS]
    return [MODEL, *found] if found else []


def by_task(
    title: str, measures: Sequence[Measure], methods: Sequence[str], summary: Summary
) -> Table | None:
    """Of each task and of their mean; None where no method has any of the measures.

    Published figures stand beside, unless ablations are compared.
    """
    papers = [] if set(methods) & set(ABLATIONS) else _papers(measures)
    lines = []
    for place in (*summary.tasks, MEAN):
        groups = [summary.group(method, place) for method in methods]
        cells = _cells(groups, measures, len(summary.tasks))
        cells += [_printed_cell(paper, place, measures) for paper in papers]
        lines.append(_line(place, groups, cells))
    if not any(any(cell) for line in lines for cell in line.cells[: len(methods)]):
        return None
    heads = [Column(p[0].method, f"published; {_convention(p[0], measures)}", True) for p in papers]
    return Table(title, measures, [*_columns(methods), *heads], lines)


def by_dataset(measures: Sequence[Measure], summary: Summary) -> Table | None:
    """Of each dataset of the tasks that have several; None where none has."""
    methods = compared(summary)
    parts = [group for group in summary.groups if not group.whole]
    lines = []
    for task, dataset in dict.fromkeys((group.task, group.dataset) for group in parts):
        found = {g.method: g for g in parts if (g.task, g.dataset) == (task, dataset)}
        groups = [found.get(method) for method in methods]
        lines.append(_line(task, groups, _cells(groups, measures, 1)))
    return Table("By dataset", measures, _columns(methods), lines) if lines else None


def _columns(methods: Sequence[str]) -> list[Column]:
    return [Column(method, ABOUT.get(method, "its outputs"), False) for method in methods]


def _line(place: str, groups: Sequence[Group | None], cells: Sequence[Cell]) -> Line:
    largest = max((group for group in groups if group), key=lambda group: group.images)
    return Line(place, largest.dataset, largest.images, cells)


def _cells(groups: Sequence[Group | None], measures: Sequence[Measure], tasks: int) -> list[Cell]:
    """For each group its values; the best of each measure is marked."""
    best = {measure: _best(groups, measure) for measure in measures}
    return [[_value(group, m, best[m], tasks) for m in measures] for group in groups]


def _best(groups: Sequence[Group | None], measure: Measure) -> str:
    """The best value as it is shown; none where all are shown alike."""
    found = [g.figures[measure.name].mean for g in groups if g and measure.name in g.figures]
    if len({_shown(value, measure) for value in found}) < 2:
        return ""
    return _shown(max(found) if measure.better > 0 else min(found), measure)


def _shown(value: float, measure: Measure) -> str:
    return f"{value:.{measure.digits}f}"


def _value(group: Group | None, measure: Measure, best: str, tasks: int) -> Value | None:
    figure = group.figures.get(measure.name) if group else None
    if group is None or figure is None:
        return None
    notes = []
    if figure.low is not None and figure.high is not None:
        notes.append("–".join(_shown(end, measure) for end in (figure.low, figure.high)))
    if group.task == MEAN and figure.tasks < tasks:
        notes.append(f"of {figure.tasks} tasks")
    text = _shown(figure.mean, measure)
    return Value(text, ", ".join(notes), text == best)


def _papers(measures: Sequence[Measure]) -> list[list[Printed]]:
    """The published figures of some measures, by method and convention."""
    papers: dict[tuple[str, str], list[Printed]] = {}
    for entry in printed(measures):
        papers.setdefault((entry.method, _convention(entry, measures)), []).append(entry)
    return list(papers.values())


def _convention(entry: Printed, measures: Sequence[Measure]) -> str:
    return DETAILS if measures[0] in (LPIPS, FID) else entry.convention


def _printed_cell(paper: Sequence[Printed], place: str, measures: Sequence[Measure]) -> Cell:
    entry = next((entry for entry in paper if entry.task == place), None)
    if entry is None:
        return [None for _ in measures]
    values = [entry.values.get(measure) for measure in measures]
    return [
        None if value is None else Value(_shown(value, m), entry.dataset, False)
        for value, m in zip(values, measures, strict=True)
    ]

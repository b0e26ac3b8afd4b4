"""The figures as JSON and CSV, as lines for the terminal, and on Weights & Biases."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modules.metrics import METRICS, Metric, tables
from pipeline.evaluation.gallery import Case
from pipeline.evaluation.methods import INPUT, MODEL
from pipeline.evaluation.rows import plain
from pipeline.evaluation.summary import MEAN, Figure, Group, Summary
from pipeline.tracking import TRACKER

if TYPE_CHECKING:
    import wandb


def to_json(summary: Summary) -> dict[str, Any]:
    """All figures, the headline first: the model beside its input, in the reference's convention.

    The headline's keys are short ones, which `figures` uses too.
    """
    recognition = summary.recognition
    return {
        "mean": _headline(summary, MEAN),
        "tasks": [{"word": task} | _headline(summary, task) for task in summary.tasks],
        "accuracy": recognition and recognition.accuracy,
        "words": recognition and list(recognition.words),
        "confusion": recognition and [list(line) for line in recognition.counts],
        "conventions": {name: metric.convention for name, metric in METRICS.items()},
        "interval": "95 % bootstrap interval of the mean",
        "figures": [_group(group) for group in summary.groups],
        "usage": [usage._asdict() for usage in summary.usage],
        "missing": dict(summary.missing),
    }


def figures(summary: Summary) -> dict[str, float]:
    """The headline for a table of runs: SCORE of the mean and SCORE/TASK, `_degraded` of the input.

    Also the accuracy of the controller and the time an image takes.
    """
    found = {}
    if summary.recognition:
        found["degradation_accuracy"] = summary.recognition.accuracy
    for usage in summary.usage:
        if usage.method == MODEL:
            found["seconds_per_image"] = usage.seconds
    for task in (MEAN, *summary.tasks):
        place = "" if task == MEAN else f"/{task}"
        for method, suffix in ((MODEL, ""), (INPUT, "_degraded")):
            scores = _short(summary.group(method, task))
            found |= {f"{name}{suffix}{place}": value for name, value in scores.items()}
    return found


def to_csv(summary: Summary) -> str:
    """A line for each method, task and dataset; the columns say the convention and the unit."""
    file = io.StringIO()
    columns = ["method", "task", "dataset", "images"]
    for name in METRICS:
        columns += [name, f"{name}_low95", f"{name}_high95"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for group in summary.groups:
        ends = [_ends(group.figures.get(name)) for name in METRICS]
        values = [value for end in ends for value in end]
        writer.writerow([group.method, group.task, group.dataset, group.images, *values])
    return file.getvalue()


def to_text(summary: Summary) -> str:
    """The metrics of validation by method and task, for a terminal."""
    lines = []
    for metrics in tables(metric for metric in METRICS.values() if metric.in_validation).values():
        lines += _table(metrics, summary)
    if found := summary.recognition:
        share = f"{100 * found.accuracy:.1f}%, the mean of the degradations"
        lines.append(f"degradation recognised: {share}, of {found.images} images")
    lines += [f"{name}: not computed; {reason}" for name, reason in summary.missing.items()]
    return "\n".join(lines)


def _table(metrics: Sequence[Metric], summary: Summary) -> list[str]:
    """A heading and a line for each task; nothing where no method has any of the metrics."""
    methods, places = summary.compared, (*summary.tasks, MEAN)
    cells = [[_cell(summary.group(m, place), metrics) for m in methods] for place in places]
    if not any(any(line) for line in cells):
        return []
    labels = (f"{m.label} in {m.unit}" if m.unit else m.label for m in metrics)
    return [
        f"{' / '.join(labels)}, {metrics[0].convention}",
        f"{'':16}" + "".join(f"{method[:15]:>16}" for method in methods),
        *(
            f"{place:16}" + "".join(f"{cell or '-':>16}" for cell in line)
            for place, line in zip(places, cells, strict=True)
        ),
    ]


def show(summary: Summary, cases: Sequence[Case]) -> None:
    """Show figures, table and pictures on the stage's Weights & Biases run, if there is one."""
    TRACKER(lambda run: run.summary.update(figures(summary)))
    TRACKER(lambda run: run.log({"scores": _scores(summary), "gallery": _pictures(cases)}))


def _scores(summary: Summary) -> wandb.Table:
    import wandb

    rows = [
        [group.method, group.task, group.dataset, group.images]
        + [group.figures[m].mean if m in group.figures else None for m in METRICS]
        for group in summary.groups
    ]
    return wandb.Table(columns=["method", "task", "dataset", "images", *METRICS], data=rows)


def _pictures(cases: Sequence[Case]) -> wandb.Table:
    import wandb

    labels = dict.fromkeys(picture.label for case in cases for picture in case.pictures)
    rows = []
    for case in cases:
        images = {picture.label: wandb.Image(picture.image) for picture in case.pictures}
        cells = [images.get(label) for label in labels]
        rows.append([case.task, case.name, case.found, case.gain, *cells])
    return wandb.Table(columns=["task", "name", "found", "gain", *labels], data=rows)


def _headline(summary: Summary, task: str) -> dict[str, Any]:
    model, degraded = summary.group(MODEL, task), summary.group(INPUT, task)
    return {
        "images": degraded.images if degraded else 0,
        "degraded": {name: plain(value) for name, value in _short(degraded).items()},
        "restored": {name: plain(value) for name, value in _short(model).items()},
    }


def _short(group: Group | None) -> dict[str, float]:
    found = group.figures if group else {}
    return {METRICS[name].short: figure.mean for name, figure in found.items()}


def _group(group: Group) -> dict[str, Any]:
    values = {
        name: {key: plain(v) if isinstance(v, float) else v for key, v in figure._asdict().items()}
        for name, figure in group.figures.items()
    }
    return group._asdict() | {"figures": values}


def _ends(figure: Figure | None) -> list[float | str]:
    if figure is None:
        return ["", "", ""]
    return ["" if v is None else v for v in (figure.mean, figure.low, figure.high)]


def _cell(group: Group | None, metrics: Sequence[Metric]) -> str:
    found = [(m, group.figures.get(m.name)) for m in metrics] if group else []
    if not any(figure for _, figure in found):
        return ""
    return " / ".join(m.text(figure.mean) if figure else "-" for m, figure in found)

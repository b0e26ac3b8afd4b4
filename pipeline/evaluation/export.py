"""The figures as JSON and CSV, and as lines for the terminal."""

from __future__ import annotations

import csv
import io
from typing import Any

from pipeline.evaluation.measures import MEAN, MEASURES, RGB
from pipeline.evaluation.methods import INPUT, MODEL
from pipeline.evaluation.rows import plain
from pipeline.evaluation.summary import Figure, Group, Summary
from pipeline.evaluation.tables import compared


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
        "conventions": {name: measure.convention for name, measure in MEASURES.items()},
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
    for name in MEASURES:
        columns += [name, f"{name}_low95", f"{name}_high95"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for group in summary.groups:
        ends = [_ends(group.figures.get(name)) for name in MEASURES]
        values = [value for end in ends for value in end]
        writer.writerow([group.method, group.task, group.dataset, group.images, *values])
    return file.getvalue()


def to_text(summary: Summary) -> str:
    """PSNR and SSIM of each method and task, in the reference's convention, for a terminal."""
    psnr, ssim = RGB
    methods = compared(summary)
    lines = [f"{psnr.label} in {psnr.unit} / {ssim.label}, {psnr.convention}"]
    lines.append(f"{'':16}" + "".join(f"{method[:15]:>16}" for method in methods))
    for task in (*summary.tasks, MEAN):
        cells = [_cell(summary.group(method, task)) for method in methods]
        lines.append(f"{task:16}" + "".join(f"{cell:>16}" for cell in cells))
    if found := summary.recognition:
        share = f"{100 * found.accuracy:.1f}%, the mean of the degradations"
        lines.append(f"degradation recognised: {share}, of {found.images} images")
    lines += [f"{name}: not computed; {reason}" for name, reason in summary.missing.items()]
    return "\n".join(lines)


def _headline(summary: Summary, task: str) -> dict[str, Any]:
    model, degraded = summary.group(MODEL, task), summary.group(INPUT, task)
    return {
        "images": degraded.images if degraded else 0,
        "degraded": {name: plain(value) for name, value in _short(degraded).items()},
        "restored": {name: plain(value) for name, value in _short(model).items()},
    }


def _short(group: Group | None) -> dict[str, float]:
    found = group.figures if group else {}
    return {MEASURES[name].short: figure.mean for name, figure in found.items()}


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


def _cell(group: Group | None) -> str:
    psnr, ssim = (group.figures.get(measure.name) if group else None for measure in RGB)
    return f"{psnr.mean:.2f} / {ssim.mean:.3f}" if psnr and ssim else "-"

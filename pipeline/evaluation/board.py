"""An evaluation on Weights & Biases: its figures, its table and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.evaluation.export import figures
from pipeline.evaluation.gallery import Case
from pipeline.evaluation.measures import MEASURES
from pipeline.evaluation.summary import Summary
from pipeline.tracking import TRACKER

if TYPE_CHECKING:
    import wandb


def show(summary: Summary, cases: Sequence[Case]) -> None:
    """Show it on the stage's run, if there is one."""
    TRACKER(lambda run: run.summary.update(figures(summary)))
    TRACKER(lambda run: run.log({"scores": _scores(summary), "gallery": _pictures(cases)}))


def _scores(summary: Summary) -> wandb.Table:
    import wandb

    rows = [
        [group.method, group.task, group.dataset, group.images]
        + [group.figures[m].mean if m in group.figures else None for m in MEASURES]
        for group in summary.groups
    ]
    return wandb.Table(columns=["method", "task", "dataset", "images", *MEASURES], data=rows)


def _pictures(cases: Sequence[Case]) -> wandb.Table:
    import wandb

    labels = dict.fromkeys(picture.label for case in cases for picture in case.pictures)
    rows = []
    for case in cases:
        images = {picture.label: wandb.Image(picture.image) for picture in case.pictures}
        cells = [images.get(label) for label in labels]
        rows.append([case.task, case.name, case.found, case.gain, *cells])
    return wandb.Table(columns=["task", "name", "found", "gain", *labels], data=rows)

"""From one row for each image of each method to the figures of a report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap  # type: ignore[import-untyped]

from modules.metrics import METRICS
from pipeline.evaluation.ablations import ABLATIONS
from pipeline.evaluation.methods import MODEL
from pipeline.evaluation.rows import Row
from pipeline.evaluation.scoring import SetFigures

MEAN = "mean"
"""In place of a task: the average over tasks, each of equal weight."""
RESAMPLES, LEVEL = 2000, 0.95
"""Of the bootstrap intervals."""


class Figure(NamedTuple):
    """One number of a table."""

    mean: float
    low: float | None
    """The 95 % interval of the mean, by bootstrap; None where there is none."""
    high: float | None
    images: int
    tasks: int
    """How many tasks it is an average over; 1 for that of a task."""


class Group(NamedTuple):
    """The figures of one method on one task, or on one dataset of it."""

    method: str
    task: str
    """Or MEAN."""
    dataset: str
    """All the names that come together here, joined with ` + `."""
    whole: bool
    """Whether it is all of the task."""
    images: int
    figures: Mapping[str, Figure]
    """By the names of METRICS."""


class Usage(NamedTuple):
    """What a method took for an image, on average; its memory at most."""

    method: str
    images: int
    calls: float
    seconds: float
    peak_mb: float | None


class Recognition(NamedTuple):
    """Which degradation the controller took for which."""

    words: Sequence[str]
    counts: Sequence[Sequence[int]]
    """Images by true degradation (row) and the one found (column), in the order of `words`."""

    @property
    def images(self) -> int:
        """How many it looked at."""
        return sum(map(sum, self.counts))

    @property
    def accuracy(self) -> float:
        """The share of a degradation's images that it took for what they are, as the mean of the
        degradations there are."""
        shares = [self.accuracy_of(word) for word in self.words]
        return fmean(share for share in shares if share is not None)

    def accuracy_of(self, word: str) -> float | None:
        """The same of one degradation's images; None where there are none."""
        i = self.words.index(word)
        total = sum(self.counts[i])
        return self.counts[i][i] / total if total else None


@dataclass(frozen=True)
class Summary:
    """The figures of an evaluation."""

    methods: Sequence[str]
    tasks: Sequence[str]
    groups: Sequence[Group]
    usage: Sequence[Usage]
    recognition: Recognition | None
    """None where no controller looked."""
    missing: Mapping[str, str]
    """What was not computed, each with the reason."""

    def group(self, method: str, task: str) -> Group | None:
        """All of a task, or MEAN; None where the method has nothing of it."""
        found = (g for g in self.groups if g.whole and (g.method, g.task) == (method, task))
        return next(found, None)

    @property
    def compared(self) -> list[str]:
        """The methods that compete: all but the ablations."""
        return [method for method in self.methods if method not in ABLATIONS]

    @property
    def ablated(self) -> list[str]:
        """The model and its ablations; none where there are no ablations."""
        found = [method for method in self.methods if method in ABLATIONS]
        return [MODEL, *found] if found else []


def summarise(
    rows: Sequence[Row],
    words: Sequence[str],
    set_figures: SetFigures,
    missing: Mapping[str, str],
) -> Summary:
    """Average rows over the images of a task, and tasks, with equal weight, over the whole.

    Args:
        rows: at least one, in the order in which methods and tasks are to be shown.
        words: the degradations the controller tells apart.
        set_figures: scores of sets of images, of the groups that have them.
        missing: metrics that were not computed at all, each with the reason.
    """
    by_place: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_place[row.method, row.task].append(row)
    methods = list(dict.fromkeys(row.method for row in rows))
    tasks = sorted({row.task for row in rows})
    groups = [
        group
        for method in methods
        for group in _of_method(method, [by_place[method, task] for task in tasks], set_figures)
    ]
    return Summary(
        methods,
        tasks,
        groups,
        [_usage(method, rows) for method in methods if _took(method, rows)],
        _recognition([row for row in rows if row.method == MODEL], words),
        dict(missing) | _missing(rows),
    )


def _of_method(method: str, tasks: Sequence[Sequence[Row]], set_figures: SetFigures) -> list[Group]:
    """The groups of each task and its datasets, and the mean."""
    groups = []
    for rows in tasks:
        if not rows:
            continue
        datasets = sorted({row.dataset for row in rows})
        groups.append(_group(method, rows, datasets, True, set_figures))
        if len(datasets) > 1:
            for name in datasets:
                of_dataset = [row for row in rows if row.dataset == name]
                groups.append(_group(method, of_dataset, [name], False, set_figures))
    return [*groups, _mean(method, [rows for rows in tasks if rows], groups)]


def _group(
    method: str,
    rows: Sequence[Row],
    datasets: Sequence[str],
    whole: bool,
    set_figures: SetFigures,
) -> Group:
    task = rows[0].task
    figures = {}
    for name in METRICS:
        if values := [row.scores[name] for row in rows if name in row.scores]:
            figures[name] = Figure(fmean(values), *interval([values]), len(values), 1)
        of_sets = set_figures.get(name, {})
        if found := of_sets.get((method, task, "" if whole else datasets[0])):
            figures[name] = Figure(found.value, None, None, found.images, 1)
    return Group(method, task, " + ".join(datasets), whole, len(rows), figures)


def _mean(method: str, tasks: Sequence[Sequence[Row]], groups: Sequence[Group]) -> Group:
    whole = [group for group in groups if group.whole]
    datasets = " + ".join(sorted({row.dataset for rows in tasks for row in rows}))
    figures = {}
    for name in METRICS:
        found = [group.figures[name] for group in whole if name in group.figures]
        if found:
            values = [[r.scores[name] for r in rows if name in r.scores] for rows in tasks]
            ends = interval([of_task for of_task in values if of_task])
            images = sum(figure.images for figure in found)
            mean = fmean(figure.mean for figure in found)
            figures[name] = Figure(mean, *ends, images, len(found))
    images = sum(group.images for group in whole)
    return Group(method, MEAN, datasets, True, images, figures)


def interval(tasks: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Ends of a 95 % interval of the mean over tasks, each of equal weight whatever its size.

    Percentile bootstrap (Efron and Tibshirani, 1993, section 13.3); values are drawn within their
    task. Where they are few it is too short: of normal values it holds the true mean in 87 % of
    cases with 6 values, 90 % with 10, 94 % with 30.

    Returns:
        None where there is no spread to see: of a task with a single value, or with infinite ones,
        such as the PSNR of equal images.
    """
    if not tasks or any(len(task) < 2 or not all(map(isfinite, task)) for task in tasks):
        return None, None
    found = bootstrap(
        tasks,
        _mean_of_means,
        n_resamples=RESAMPLES,
        batch=100,  # bounds the memory
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _mean_of_means(*tasks: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.mean([values.mean(axis=axis) for values in tasks], axis=0)
    return means


def _took(method: str, rows: Sequence[Row]) -> bool:
    return any(row.method == method and row.seconds is not None for row in rows)


def _usage(method: str, rows: Sequence[Row]) -> Usage:
    own = [row for row in rows if row.method == method and row.seconds is not None]
    peaks = [row.peak_mb for row in own if row.peak_mb is not None]
    return Usage(
        method,
        len(own),
        fmean(row.calls for row in own if row.calls is not None),
        fmean(row.seconds for row in own if row.seconds is not None),
        max(peaks, default=None),
    )


def _recognition(rows: Sequence[Row], words: Sequence[str]) -> Recognition | None:
    counts = Counter((row.task, row.found) for row in rows if row.found)
    if not counts:
        return None
    return Recognition(words, [[counts[true, found] for found in words] for true in words])


def _missing(rows: Sequence[Row]) -> dict[str, str]:
    """Images that there are not, and measures that some images cannot have."""
    faults: dict[str, list[str]] = defaultdict(list)
    small: dict[str, dict[str, str]] = defaultdict(dict)
    samples = {row.sample for row in rows}
    for row in rows:
        if row.fault:
            faults[row.method].append(row.fault)
        for name, reason in row.missing.items():
            small[name].setdefault(row.sample, reason)
    missing = {
        f"{method}, {len(found)} of {len(samples)} images": found[0]
        for method, found in faults.items()
    }
    for name, found in small.items():
        reason = next(iter(found.values()))
        missing[METRICS[name].title] = f"of {len(found)} of {len(samples)} images; {reason}"
    return missing

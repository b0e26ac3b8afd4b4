"""From one row for each evaluated image to the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

SCORES = ("psnr", "ssim", "psnr_y", "ssim_y")


@dataclass(frozen=True)
class Row:
    """What was measured on one image."""

    key: str
    word: str
    source: str
    found: str
    """The degradation the controller recognised."""
    probability: float
    """Of that degradation, in 0..1."""
    degraded: Mapping[str, float]
    """Scores of the degraded image: the names in SCORES, and `lpips` where it is available."""
    restored: Mapping[str, float]
    seconds: float
    """Wall time of the restoration, sharing that of its batch."""


@dataclass(frozen=True)
class Task:
    """Mean scores over the images of one degradation."""

    word: str
    images: int
    degraded: Mapping[str, float]
    restored: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """The figures of an evaluation."""

    tasks: Sequence[Task]
    mean: Task
    """Average over the tasks, each of equal weight."""
    words: Sequence[str]
    confusion: Sequence[Sequence[int]]
    """Images by true degradation (row) and recognised one (column), in the order of `words`."""
    accuracy: float
    seconds_per_image: float
    missing: Mapping[str, str]
    """Metrics that were not computed, each with the reason."""
    fid: Mapping[str, float]
    """FID of each task's restored images, where it is available."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def figures(self) -> dict[str, float]:
        """`SCORE` of the mean and `SCORE/TASK`, restored and `_degraded`, and the other figures."""
        figures = {
            "degradation_accuracy": self.accuracy,
            "seconds_per_image": self.seconds_per_image,
        } | {f"fid/{word}": score for word, score in self.fid.items()}
        for task in (self.mean, *self.tasks):
            of_task = "" if task is self.mean else f"/{task.word}"
            for suffix, scores in (("", task.restored), ("_degraded", task.degraded)):
                figures |= {f"{name}{suffix}{of_task}": value for name, value in scores.items()}
        return figures


def summarise(
    rows: Sequence[Row],
    words: Sequence[str],
    missing: Mapping[str, str],
    fid: Mapping[str, float],
) -> Summary:
    """Average rows over tasks, and tasks over the whole.

    Args:
        rows: at least one.
        words: the degradations the controller tells apart.
        missing: metrics that were not computed, each with the reason.
        fid: of each task, empty where it is missing.
    """
    by_word = {word: [row for row in rows if row.word == word] for word in words}
    tasks = [_task(word, found) for word, found in by_word.items() if found]
    counts = {(row.word, row.found): 0 for row in rows}
    for row in rows:
        counts[row.word, row.found] += 1
    return Summary(
        tasks=tasks,
        mean=Task(
            "mean",
            len(rows),
            _mean([task.degraded for task in tasks]),
            _mean([task.restored for task in tasks]),
        ),
        words=list(words),
        confusion=[[counts.get((true, found), 0) for found in words] for true in words],
        accuracy=fmean(row.word == row.found for row in rows),
        seconds_per_image=fmean(row.seconds for row in rows),
        missing=missing,
        fid=fid,
    )


def text_table(summary: Summary) -> str:
    """The table for the terminal: degraded -> restored, RGB."""
    lines = [f"{'task':<18}{'images':>6}   {'PSNR dB':^24}   {'SSIM':^18}"]
    for task in [*summary.tasks, summary.mean]:
        before, after = task.degraded, task.restored
        gain = after["psnr"] - before["psnr"]
        lines.append(
            f"{task.word:<18}{task.images:>6}   {before['psnr']:>6.2f} -> {after['psnr']:>5.2f} "
            f"({gain:+6.2f})   {before['ssim']:.3f} -> {after['ssim']:.3f}"
        )
    lines.append(f"degradation recognised: {summary.accuracy:.1%} of {summary.mean.images} images")
    lines += [f"{name}: not computed; {reason}" for name, reason in summary.missing.items()]
    return "\n".join(lines)


def _task(word: str, rows: Sequence[Row]) -> Task:
    degraded, restored = [row.degraded for row in rows], [row.restored for row in rows]
    return Task(word, len(rows), _mean(degraded), _mean(restored))


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(score[name] for score in scores) for name in scores[0]}

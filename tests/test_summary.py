"""From rows to figures: equal weight for tasks, exact confusion, missing metrics said."""

from __future__ import annotations

import pytest

from pipeline.report import _spread
from pipeline.summary import Row, summarise, text_table


def row(key: str, word: str, found: str, before: float, after: float) -> Row:
    degraded = {"psnr": before, "ssim": 0.5, "psnr_y": before + 1, "ssim_y": 0.6}
    restored = {"psnr": after, "ssim": 0.7, "psnr_y": after + 1, "ssim_y": 0.8}
    return Row(key, word, "photo", found, 0.9, degraded, restored, seconds=2.0)


ROWS = [
    row("1", "hazy", "hazy", 10, 14),
    row("2", "hazy", "rainy", 20, 22),
    row("3", "hazy", "hazy", 15, 15),
    row("4", "rainy", "rainy", 5, 11),
]
WORDS = ["hazy", "rainy", "snowy"]


def test_tasks_weigh_equally_in_the_mean() -> None:
    summary = summarise(ROWS, WORDS, {}, {})
    assert [(task.word, task.images) for task in summary.tasks] == [("hazy", 3), ("rainy", 1)]
    assert summary.tasks[0].degraded["psnr"] == pytest.approx(15)
    assert summary.tasks[0].restored["psnr"] == pytest.approx(17)
    assert summary.mean.degraded["psnr"] == pytest.approx((15 + 5) / 2)
    assert summary.mean.restored["psnr_y"] == pytest.approx((18 + 12) / 2)


def test_confusion_counts_truth_by_row() -> None:
    summary = summarise(ROWS, WORDS, {}, {})
    assert summary.confusion == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert summary.accuracy == pytest.approx(3 / 4)


def test_table_shows_gains_and_what_is_missing() -> None:
    table = text_table(summarise(ROWS, WORDS, {"LPIPS": "no weights"}, {}))
    lines = table.splitlines()
    assert "15.00 -> 17.00 ( +2.00)" in lines[1]
    assert lines[3].startswith("mean")
    assert "75.0%" in lines[4]
    assert lines[5] == "LPIPS: not computed; no weights"


@pytest.mark.parametrize(("count", "expected"), [(1, "c"), (2, "ae"), (3, "ace"), (9, "abcde")])
def test_gallery_takes_best_and_worst(count: int, expected: str) -> None:
    rows = [row(key, "hazy", "hazy", 1, 1) for key in "abcde"]
    assert "".join(r.key for r in _spread(rows, count)) == expected

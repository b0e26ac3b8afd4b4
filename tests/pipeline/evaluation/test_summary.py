"""From rows to figures and tables: equal weight for tasks, intervals, exact confusion."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, t

from modules.metrics import METRICS
from pipeline.evaluation.export import figures, to_csv, to_json, to_text
from pipeline.evaluation.report import by_dataset, by_task
from pipeline.evaluation.rows import Row
from pipeline.evaluation.scoring import SetFigure
from pipeline.evaluation.summary import Group, Summary, interval, summarise
from tests.evaluating import row

INPUTS = [
    row("input", "hazy", "1", 10, dataset="a"),
    row("input", "hazy", "2", 20, dataset="a"),
    row("input", "hazy", "3", 15, dataset="b"),
    row("input", "rainy", "4", 5, dataset="a"),
]
MODELS = [
    row("model", "hazy", "1", 14, "hazy", dataset="a"),
    row("model", "hazy", "2", 22, "rainy", dataset="a"),
    row("model", "hazy", "3", 15, "hazy", dataset="b"),
    row("model", "rainy", "4", 11, "rainy", dataset="a"),
]
WORDS = ["hazy", "rainy", "snowy"]
RGB = [METRICS[f"{name}_rgb_border4"] for name in ("psnr", "ssim")]
Y = [METRICS[f"{name}_y_border4"] for name in ("psnr", "ssim")]
LPIPS, FID = METRICS["lpips_alex"], METRICS["fid"]
PSNR = RGB[0].name


def summary(
    rows: list[Row] = [*INPUTS, *MODELS],  # noqa: B006
    fid: dict[tuple[str, str, str], SetFigure] = {},  # noqa: B006
    missing: dict[str, str] = {},  # noqa: B006
) -> Summary:
    return summarise(rows, WORDS, {"fid": fid}, missing)


def whole(found: Summary, method: str, task: str) -> Group:
    group = found.group(method, task)
    assert group is not None
    return group


def test_tasks_weigh_equally_in_the_mean() -> None:
    found = summary()
    assert found.methods == ["input", "model"]
    assert [(g.task, g.images) for g in found.groups if g.whole and g.method == "model"] == [
        ("hazy", 3),
        ("rainy", 1),
        ("mean", 4),
    ]
    assert whole(found, "input", "hazy").figures[PSNR].mean == pytest.approx(15)
    assert whole(found, "model", "hazy").figures[PSNR].mean == pytest.approx(17)
    mean = whole(found, "model", "mean").figures[PSNR]
    assert mean.mean == pytest.approx((17 + 11) / 2)
    assert (mean.images, mean.tasks) == (4, 2)


def test_datasets_of_a_task_stand_apart_and_together() -> None:
    found = summary()
    parts = {(g.dataset, g.figures[PSNR].mean) for g in found.groups if not g.whole}
    assert parts == {("a", 15.0), ("b", 15.0), ("a", 18.0)}
    assert whole(found, "model", "hazy").dataset == "a + b"
    table = by_dataset(RGB, found)
    assert table is not None
    assert [(line.head, line.note, line.images) for line in table.lines] == [
        ("hazy", "a", 2),
        ("hazy", "b", 1),
    ]


def test_interval_holds_the_mean_and_a_single_image_has_none() -> None:
    found = summary()
    figure = whole(found, "model", "hazy").figures[PSNR]
    assert figure.low is not None and figure.high is not None
    assert 14 <= figure.low < figure.mean < figure.high <= 22
    assert whole(found, "model", "rainy").figures[PSNR].low is None
    assert whole(found, "model", "mean").figures[PSNR].low is None  # rainy has a single image
    more = [*INPUTS, *MODELS, row("input", "rainy", "5", 6), row("model", "rainy", "5", 12, "hazy")]
    figure = whole(summary(more), "model", "mean").figures[PSNR]
    assert figure.low is not None and figure.high is not None
    assert figure.low < figure.mean < figure.high


@pytest.mark.parametrize("count", [10, 40])
def test_intervals_hold_the_mean_as_often_as_theory_says(count: int) -> None:
    """Of normal values they are the mean and z s / √n on either side, s with n for n - 1."""
    repetitions = 300
    samples = np.random.default_rng(0).normal(25, 3, (repetitions, count))
    reach = norm.ppf(0.975) * np.sqrt((count - 1) / count)
    share = 1 - 2 * t.sf(reach, count - 1)
    inside = np.mean([low <= 25 <= high for low, high in (interval([x]) for x in samples)])
    assert inside == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / repetitions))


def test_tasks_weigh_alike_in_an_interval_and_are_drawn_each_for_itself() -> None:
    assert interval([[10.0] * 500, [20.0] * 2]) == (15, 15)
    assert interval([[10.0] * 500, [20.0, 24.0]]) == (15, 17)
    assert interval([[1.0, 2.0], [3.0]]) == interval([]) == (None, None)


def test_confusion_counts_truth_by_row() -> None:
    recognition = summary().recognition
    assert recognition is not None
    assert recognition.counts == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert recognition.accuracy == pytest.approx((2 / 3 + 1) / 2)  # the mean of the words
    assert summary(INPUTS).recognition is None


def test_images_there_are_not_are_told_by_method() -> None:
    bad = replace(MODELS[0], scores={}, fault="set/hazy/1: has NaN", found=None, seconds=None)
    found = summary([*INPUTS, bad, *MODELS[1:]])
    assert found.missing["model, 1 of 4 images"] == "set/hazy/1: has NaN"
    assert found.recognition is not None and found.recognition.images == 3
    assert found.usage[0].images == 3
    hazy = whole(found, "model", "hazy")
    assert hazy.images == 3 and hazy.figures[PSNR].images == 2


def test_equal_images_have_no_interval() -> None:
    infinite = [row("input", "hazy", str(i), float("inf")) for i in range(3)]
    figure = whole(summary(infinite), "input", "hazy").figures[PSNR]
    assert (figure.mean, figure.low, figure.high) == (float("inf"), None, None)


def test_what_it_took_is_of_those_that_tell() -> None:
    (usage,) = summary().usage
    assert (usage.method, usage.images, usage.calls) == ("model", 4, 5)
    assert (usage.seconds, usage.peak_mb) == (2, 100)


def test_fid_is_averaged_over_the_tasks_that_have_one() -> None:
    found = summary(
        fid={("model", "hazy", ""): SetFigure(30, 3), ("model", "hazy", "a"): SetFigure(40, 2)}
    )
    assert whole(found, "model", "hazy").figures[FID.name].mean == 30
    (part,) = [g for g in found.groups if not g.whole and FID.name in g.figures]
    assert (part.dataset, part.figures[FID.name].mean) == ("a", 40)
    mean = whole(found, "model", "mean").figures[FID.name]
    assert (mean.mean, mean.tasks, mean.low) == (30, 1, None)
    table = by_task("FID", [FID], ["input", "model"], found)
    assert table is not None
    last = table.lines[-1].cells[1][0]
    assert last is not None
    assert last.note == "of 1 tasks"


def test_best_of_a_line_is_marked_whichever_way_a_measure_runs() -> None:
    rows = [
        row("input", "hazy", "1", 10, lpips_alex=0.2),
        row("PromptIR", "hazy", "1", 12, lpips_alex=0.3),
    ]
    for measures, best in ((RGB, "PromptIR"), ([LPIPS], "input")):
        table = by_task("", measures, ["input", "PromptIR"], summary(rows))
        assert table is not None
        marked = [
            c.head
            for c, v in zip(table.columns, table.lines[0].cells, strict=False)
            if v[0] and v[0].best
        ]
        assert marked == [best]


def test_values_that_are_shown_alike_are_best_alike() -> None:
    rows = [row(m, "hazy", "1", v) for m, v in (("input", 10.001), ("A", 10.002), ("B", 9))]
    table = by_task("", RGB[:1], ["input", "A", "B"], summary(rows))
    assert table is not None
    best = [
        [value is not None and value.best for value in cell] for cell in table.lines[0].cells[:3]
    ]
    assert best == [[True], [True], [False]]
    alone = by_task("", RGB[:1], ["input"], summary(rows))
    assert alone is not None
    assert alone.lines[0].cells[0][0] is not None and not alone.lines[0].cells[0][0].best


def test_published_figures_stand_under_their_own_convention() -> None:
    found = summary(
        [
            row(m, t, "1", 10, psnr_y_border4=10.0)
            for m in ("input", "model")
            for t in ("hazy", "rainy")
        ]
    )
    rgb, luma = by_task("", RGB, ["input"], found), by_task("", Y, ["input"], found)
    assert rgb is not None and luma is not None
    shown = {(c.head, c.note) for c in rgb.columns if c.published}
    assert {head for head, _ in shown} == {"DA-CLIP", "PromptIR", "NAFNet + DA-CLIP"}
    assert all("not stated" in note for _, note in shown)
    mean = rgb.lines[-1].cells[1]
    assert [value and value.text for value in mean] == ["27.01", "0.794"]
    ((head, note),) = {(c.head, c.note) for c in luma.columns if c.published}
    assert head == "DA-CLIP"
    assert "Y, border not stated" in note
    hazy = luma.lines[0].cells[1]
    assert [value and (value.text, value.note) for value in hazy] == [
        ("30.16", "RESIDE-6k"),
        ("0.936", "RESIDE-6k"),
    ]


def test_ablations_stand_beside_the_model_and_not_among_the_methods() -> None:
    rows = [row(m, "hazy", "1", 10) for m in ("input", "model", "no_prompt", "PromptIR")]
    found = summary(rows)
    assert found.compared == ["input", "model", "PromptIR"]
    assert found.ablated == ["model", "no_prompt"]
    table = by_task("", RGB, found.ablated, found)
    assert table is not None
    assert [c.note for c in table.columns] == ["as it is", "no degradation prompt"]
    assert summary().ablated == []


def test_what_an_image_cannot_have_is_counted_and_said() -> None:
    rows = [
        Row("input", "set", "hazy", "1", {}, {LPIPS.name: "too small"}),
        row("input", "hazy", "2", 10),
    ]
    found = summary(rows, missing={"FID": "no weights"})
    assert found.missing == {"FID": "no weights", LPIPS.title: "of 1 of 2 images; too small"}
    assert whole(found, "input", "hazy").figures[PSNR].images == 1
    assert to_text(found).splitlines()[-2] == "FID: not computed; no weights"


def test_terminal_shows_every_method_and_the_convention() -> None:
    lines = to_text(summary()).splitlines()
    assert "4 px cut" in lines[0] and "RGB" in lines[0]
    assert lines[2].split() == ["hazy", "15.00", "/", "0.150", "17.00", "/", "0.170"]
    assert lines[4].startswith("mean")
    assert lines[5] == "degradation recognised: 83.3%, the mean of the degradations, of 4 images"


def test_csv_has_a_line_for_each_method_task_and_dataset() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(summary()))))
    places = [(x["method"], x["task"], x["dataset"]) for x in lines]
    assert len(places) == len(set(places)) == 2 * (1 + 2 + 1 + 1)
    assert {f"{name}{end}" for name in METRICS for end in ("", "_low95", "_high95")} < set(lines[0])
    hazy = next(x for x in lines if x["dataset"] == "a + b" and x["method"] == "model")
    assert float(hazy[PSNR]) == pytest.approx(17)
    assert hazy["lpips_alex"] == ""


def test_json_is_strict_and_names_its_conventions() -> None:
    rows = [row("input", "hazy", "1", math.inf), row("model", "hazy", "1", 14, "hazy")]
    text = json.dumps(to_json(summary(rows)), allow_nan=False)
    found = json.loads(text)
    assert found["mean"]["degraded"]["psnr"] == "inf"
    assert found["mean"]["restored"]["psnr"] == 14
    assert found["tasks"][0]["word"] == "hazy"
    assert "4 px" in found["conventions"][PSNR]
    assert "nothing cut" in found["conventions"]["psnr_rgb_plain"]
    again = Row.of_json(json.loads(json.dumps(rows[0].to_json(), allow_nan=False)))
    assert again == rows[0]


def test_headline_keeps_its_short_names() -> None:
    found = figures(summary(fid={("model", "hazy", ""): SetFigure(30, 3)}))
    assert found["psnr"] == pytest.approx(14)
    assert found["psnr_degraded"] == pytest.approx(10)
    assert found["psnr/hazy"] == pytest.approx(17)
    assert found["ssim_degraded/rainy"] == pytest.approx(0.05)
    assert found["fid/hazy"] == 30
    assert found["degradation_accuracy"] == pytest.approx(5 / 6)
    assert found["seconds_per_image"] == 2

"""The page of curves: what it reads, how it groups and draws, and that it stands by itself."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from datamodules.files import write_json
from pipeline.charts import chart, short
from pipeline.config import Config
from pipeline.curves import Line, Panel, panels, read_curves
from pipeline.dashboard import run as draw
from tests.conftest import photograph
from tests.pipeline.test_stage import MakeConfig

RECORD = {
    "status": "running",
    "started": "2030-01-02T03:04:05+00:00",
    "seed": 3,
    "code": "1.2.3",
}


def write_csv(stage: Path, version: int, text: str) -> None:
    path = stage / "metrics" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def panel(*lines: Line, log: bool = False) -> Panel:
    return Panel("<Loss>", lines, log, part=False, runs=False)


def paths(figure: str) -> list[ElementTree.Element]:
    """The line of each curve."""
    curves = [e for e in ElementTree.fromstring(figure).iter() if e.get("class") == "curve"]
    return [e for curve in curves for e in curve if e.tag.endswith("path")]


def polylines(figure: str) -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.attrib["d"])]
        for path in paths(figure)
    ]


def test_a_later_start_replaces_the_steps_it_does_again(tmp_path: Path) -> None:
    write_csv(tmp_path, 9, "loss,step\n3.0,20\n2.0,30\n")
    write_csv(tmp_path, 10, "epoch,loss,step,val_psnr\n0,1.5,30,\n0,,30,20\n0,1.0,40,\n")
    assert read_curves(tmp_path) == {
        "loss": [(20, 3.0), (30, 1.5), (40, 1.0)],
        "val_psnr": [(30, 20.0)],
    }
    assert read_curves(tmp_path / "gone") == {}


def test_a_half_written_row_is_left_out(tmp_path: Path) -> None:
    write_csv(tmp_path, 0, "loss,step\n3.0,1\n2.0")
    assert read_curves(tmp_path) == {"loss": [(1, 3.0)]}


def test_metrics_of_one_run_share_panels() -> None:
    names = ["odd", "lr-AdamW/pg1", "lr-AdamW/pg2", "val_psnr/hazy", "val_psnr_degraded/hazy"]
    names += ["val_psnr", "val_psnr_degraded", "loss_by_time/21-40", "loss_by_time/1-20", "loss"]
    found = panels({"run": {name: [(1, 1.0)] for name in names}})
    assert [(p.title, [line.label for line in p.lines]) for p in found] == [
        ("Loss", [""]),
        ("Loss by diffusion time t, since the last validation", ["1-20", "21-40"]),
        ("PSNR of validation, dB", ["restored", "degraded"]),
        ("PSNR of validation, dB: by task", ["hazy"]),
        ("Learning rate", ["lr-AdamW/pg1", "lr-AdamW/pg2"]),
        ("odd", [""]),
    ]
    assert [p.log for p in found] == [True, True, False, False, False, False]


def test_several_runs_share_a_panel_for_each_metric() -> None:
    both = {"loss": [(1, 1.0)], "val_psnr/hazy": [(1, 2.0)]}
    found = panels({"one": both, "two": both | {"grad_norm": [(1, 3.0)]}})
    assert [(p.title, [line.label for line in p.lines], p.part) for p in found] == [
        ("Loss", ["one", "two"], False),
        ("PSNR of validation, dB: hazy", ["one", "two"], True),
        ("Norm of the gradients", ["two"], False),
    ]


def test_higher_values_are_drawn_higher_and_later_ones_further_right() -> None:
    (curve,) = polylines(chart(panel(Line("a", [(0, 1.0), (10, 3.0), (20, 2.0)]))))
    (x, y) = zip(*curve, strict=True)
    assert list(x) == sorted(x)
    assert y[1] < y[2] < y[0]
    assert (y[0] - y[2]) == pytest.approx(y[2] - y[1], abs=0.2)


def test_wide_losses_are_drawn_on_a_logarithmic_axis() -> None:
    points = [(0, 100.0), (1, 10.0), (2, 1.0)]
    for log in (True, False):
        (curve,) = polylines(chart(panel(Line("a", points), log=log)))
        first, second, third = (y for _, y in curve)
        even = (second - first) == pytest.approx(third - second, abs=0.2)
        assert even is log


def test_long_curves_are_thinned_by_averaging() -> None:
    (curve,) = polylines(chart(panel(Line("a", [(i, i % 2) for i in range(16_000)]))))
    assert len({y for _, y in curve}) == 1


@pytest.mark.parametrize("value", [0.0, 7.0, -2.0, 1e-9])
def test_constant_and_single_values_are_drawn(value: float) -> None:
    (curve,) = polylines(chart(panel(Line("a", [(1, value), (2, value)]))))
    assert len(curve) == 2
    assert "<use" in chart(panel(Line("a", [(1, value)])))  # a dot


def test_curves_of_runs_that_coincide_can_all_be_seen() -> None:
    found = panels({name: {"loss": [(1, 1.0), (2, 2.0)]} for name in ("one", "two", "three")})
    drawn = paths(chart(found[0]))
    widths = [float(re.findall(r"stroke-width: ([\d.]+)", e.attrib["style"])[0]) for e in drawn]
    assert widths == sorted(set(widths), reverse=True)
    assert len({line.attrib["d"] for line in drawn}) == 1


def test_values_that_are_not_finite_are_left_out() -> None:
    (curve,) = polylines(chart(panel(Line("a", [(1, 1.0), (2, float("nan")), (3, 2.0)]))))
    assert len(curve) == 2
    assert "no finite value" in chart(panel(Line("a", [(1, float("inf"))])))


def test_text_is_escaped() -> None:
    figure = chart(panel(Line("<b>", [(1, 1.0), (2, 2.0)])))
    assert "<Loss>" not in figure
    assert "<b></b>" not in figure
    assert "&lt;b&gt;" in figure


def test_the_same_curves_give_the_same_bytes() -> None:
    drawn = [chart(panel(Line("a", [(1, 1.0), (2, 2.0)]))) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert "<metadata" not in drawn[0]


def test_numbers_are_short() -> None:
    assert [short(v) for v in (12_000, 0.012345, 2_500_000, 0)] == ["12k", "0.0123", "2.5M", "0"]


@pytest.fixture
def begun(tmp_path: Path) -> Callable[[str], Path]:
    """A run whose restorer is training."""

    def make(name: str) -> Path:
        run = tmp_path / name
        write_json(run / "restorer" / "stage.json", RECORD)
        header = "loss,step,val_psnr/hazy,val_psnr_degraded/hazy\n"
        write_csv(run / "restorer", 0, f"{header}1.0,1,,\n0.5,2,21.5,20\n")
        (run / "restorer" / "samples.png").write_bytes(b"png of " + name.encode())
        return run

    return make


def page_of(config: Config) -> str:
    draw(config)
    return (Path(config.run_dir) / "dashboard.html").read_text()


def test_page_of_a_run_in_training(tiny_config: MakeConfig, begun: Callable[[str], Path]) -> None:
    run = begun("one")
    page = page_of(tiny_config(f"run_dir={run}"))
    assert "2030-01-02 03:04:05" in page
    assert "LPIPS is not measured" in page
    assert "+1.5" in page
    assert "<h2>Controller</h2>" not in page
    assert page.count("<img") == 1
    assert not re.search(r'(src|href)="https?:', page)
    assert "<script" not in page
    write_csv(run / "restorer", 0, "val_lpips,step\n0.5,2\n")
    assert "LPIPS is not measured" not in page_of(tiny_config(f"run_dir={run}"))


def test_several_runs_on_one_page(tiny_config: MakeConfig, begun: Callable[[str], Path]) -> None:
    one, two = begun("one"), begun("two")
    page = page_of(tiny_config(f"run_dir={one}", f"dashboard.compare=[{two}]"))
    assert not (two / "dashboard.html").exists()
    assert page.count("<img") == 2
    figure = page[page.index("<h3>Loss</h3>") :].partition("</figure>")[0]
    assert figure.count('class="curve"') == 2
    assert "one <b>0.5</b>" in figure
    assert "two <b>0.5</b>" in figure
    assert "<details>" in page


def test_runs_of_one_name_are_told_apart(
    tiny_config: MakeConfig, begun: Callable[[str], Path]
) -> None:
    one, two = begun("a/run"), begun("b/run")
    page = page_of(tiny_config(f"run_dir={one}", f"dashboard.compare=[{two}]"))
    assert f"{one} <b>" in page
    assert f"{two} <b>" in page


def test_no_run_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "dashboard", f"run_dir={tmp_path / 'gone'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "gone is no folder of a run" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "gone").exists()


def test_figures_of_an_evaluation(tiny_config: MakeConfig, begun: Callable[[str], Path]) -> None:
    run = begun("one")
    scores = {"psnr": 20.0, "ssim": 0.5}
    mean = {"images": 7, "degraded": scores, "restored": {"psnr": 23.456, "ssim": 0.75}}
    write_json(run / "evaluation" / "metrics.json", {"mean": mean, "accuracy": 0.5})
    page = page_of(tiny_config(f"run_dir={run}"))
    assert "23.46 dB restored" in page
    assert 'href="evaluation/report.html"' in page


def test_pictures_are_inside(tiny_config: MakeConfig, begun: Callable[[str], Path]) -> None:
    from pipeline.training.callbacks import Shown, _sheet

    sheet = _sheet([Shown("a", *(photograph(8, 6, seed) for seed in range(3)))] * 2)
    assert sheet.shape == (2 * 12, 3 * 10, 3)
    assert (sheet[:8, 10:16] == photograph(8, 6, 1)).all()
    assert (sheet[12:20, 20:26] == photograph(8, 6, 2)).all()

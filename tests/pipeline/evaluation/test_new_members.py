"""A new metric or degradation is a new file: everything else takes it up."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from datamodules import degradations
from modules import metrics
from modules.metrics import METRICS
from pipeline.evaluation.export import figures, to_csv, to_json, to_text
from pipeline.evaluation.published import RECOGNISED
from pipeline.evaluation.report import write_report
from pipeline.evaluation.scoring import load_scorers, score, validation_metrics
from pipeline.evaluation.summary import summarise
from tests.evaluating import row

MAE = """
import numpy as np

from modules.metrics import ImageMetric, register


def mae(restored, clean):
    return float(np.abs(restored.astype(float) - clean).mean())


register(
    ImageMetric(
        name="mae_rgb",
        label="MAE",
        short="mae",
        table="Mean absolute error",
        convention="on RGB, 8 bit, nothing cut",
        digits=2,
        higher_is_better=False,
        position=20,
        in_validation=True,
        load=lambda device: mae,
    )
)
"""


@pytest.fixture
def mae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more file in the folder of metrics."""
    (tmp_path / "mae.py").write_text(MAE)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    before = dict(METRICS)
    metrics.discover([str(tmp_path)], metrics.__name__)
    yield
    METRICS.clear()
    METRICS.update(before)


@pytest.mark.usefixtures("mae")
def test_a_new_metric_stands_everywhere(tmp_path: Path) -> None:
    clean = np.zeros((40, 48, 3), np.uint8)
    image = clean + np.uint8(3)
    scorers = load_scorers(torch.device("cpu"), with_sets=False)
    assert score(image, clean, scorers.of_images).values["mae_rgb"] == 3
    measure = validation_metrics(torch.device("cpu"))["mae"]
    batch = [torch.from_numpy(x).permute(2, 0, 1).repeat(2, 1, 1, 1) for x in (image, clean)]
    assert measure(*batch).tolist() == [3, 3]

    rows = [row(name, "hazy", "1", 20, mae_rgb=v) for name, v in (("input", 7.5), ("model", 3.25))]
    found = summarise(rows, ["hazy"], MappingProxyType({}), {})
    assert to_json(found)["mean"]["restored"]["mae"] == 3.25
    assert figures(found)["mae_degraded/hazy"] == 7.5
    assert "on RGB" in to_json(found)["conventions"]["mae_rgb"]
    lines = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert {line["mae_rgb"] for line in lines} == {"7.5", "3.25"}
    text = to_text(found).splitlines()
    heading = text.index("MAE, on RGB, 8 bit, nothing cut")
    assert text[heading + 2].split() == ["hazy", "7.50", "3.25"]
    write_report(tmp_path / "report.html", found, [], [], {}, "cpu")
    page = (tmp_path / "report.html").read_text()
    assert "Mean absolute error" in page and "MAE (lower is better)" in page


def test_an_eleventh_degradation_changes_no_published_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dusty.py").write_text('WORD = "dusty"\n\ndef degrade(clean, rng): return clean\n')
    folders = [*degradations.__path__, str(tmp_path)]
    monkeypatch.setattr(degradations, "__path__", folders)
    words = list(degradations.discover(folders, degradations.__name__))
    assert "dusty" in words and "dusty" not in RECOGNISED

    rows = [row(name, word, "1", 20, word) for name in ("input", "model") for word in words]
    found = summarise(rows, words, MappingProxyType({}), {})
    write_report(tmp_path / "report.html", found, [], [], {}, "cpu")
    page = (tmp_path / "report.html").read_text()
    published = {
        word: page.split(f"<tr><th>{word}<td")[1].split("</tr>")[0].rpartition(">")[2].strip()
        for word in words
    }
    assert published.pop("dusty") == "–"
    assert published.pop("motion-blurry") == "91.6 %"
    assert set(published.values()) == {"100.0 %"}
    assert len(published) == 9

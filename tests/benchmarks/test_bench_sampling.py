"""make bench-sampling: the quality it finds is the evaluation's, and all of it is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.benchmarks import sampling
from tests.benchmarks.quality import METHODS
from tests.conftest import TINY_RUN


@pytest.mark.slow
def test_it_finds_what_the_evaluation_finds(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "FEW", (1, 2))
    monkeypatch.setattr(sampling, "MANY", (3,))
    monkeypatch.setattr(sampling, "SIDE", 32)
    out = ["--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sampling", *out, *TINY_RUN, f"run_dir={finished}"])
    sampling.main()
    found = json.loads((tmp_path / "bench-sampling.json").read_text())
    mean = json.loads((finished / "evaluation" / "metrics.json").read_text())["mean"]
    table = (tmp_path / "quality.md").read_text().splitlines()
    lines = {line.split(" | ")[0]: line.split(" | ")[1:] for line in table}
    expected = f"{mean['restored']['psnr']:.2f} / {mean['restored']['ssim']:.3f}"
    assert lines["| posterior, uniform"][1] == expected  # two calls, as the run's `sampling` says
    assert [line for line in lines if ", " in line and line.startswith("| ")][1:] == [
        f"| {name}, {spacing}" for name, spacing in METHODS
    ]
    before = f"{mean['degraded']['psnr']:.2f} dB / {mean['degraded']['ssim']:.3f}"
    assert table[-1] == f"degraded images: {before}"
    values = {(row["part"], row["name"]): row["value"] for row in found["rows"]}
    assert values["time, cpu, 32²", "network calls, reference / default"] == 50
    assert values["time, cpu, 32²", "reference / default"] is not None
    assert ElementTree.parse(tmp_path / "quality.svg").getroot().tag.endswith("svg")

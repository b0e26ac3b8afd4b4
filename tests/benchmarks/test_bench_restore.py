"""make bench-restore: what its processes find becomes the rows, and all of it is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.benchmarks import restore

PRINTS = "import json, sys; json.dump({'peak': %d, 'seconds': 2.5, 'tiles': 4}, sys.stdout)"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, int], object, object]]:
    """Model, size, tile and steps of each image; a process has the megabytes of its side."""
    found = []

    def restoring(model: str, image: Path, tile: object, steps: object) -> list[str]:
        size = Image.open(image).size
        found.append((model, size, tile, steps))
        return [sys.executable, "-c", PRINTS % size[0]]

    for name, side in (("FIRST", 30), ("SMALL", 40), ("LARGE", 50)):
        monkeypatch.setattr(restore, name, side)
    monkeypatch.setattr(restore, "HELP", (sys.executable, "-c", ""))
    monkeypatch.setattr(restore, "_restoring", restoring)
    return found


def test_rows_are_what_the_processes_found(
    runs: list[tuple[str, tuple[int, int], object, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restore, "CUDA", False)
    monkeypatch.setattr(sys, "argv", ["restore", "--out", str(tmp_path), "--model", "some"])
    restore.main()
    found = json.loads((tmp_path / "bench-restore.json").read_text())
    rows = {(row["part"].split(",")[0], row["name"]): row for row in found["rows"]}
    assert rows["memory", "40²"]["value"] == 40 and rows["memory", "50²"]["value"] == 50
    assert rows["memory", "50² / 40²"]["value"] == 1.25
    assert rows["memory", "50² / 40²"]["verdict"] == "met"
    assert 0 < rows["start", "first image, 30²"]["value"] < 8
    assert rows["start", "--help"]["rounds"] and not rows["CUDA", "time, whole"]["rounds"]
    assert rows["CUDA", "memory, tiles of 512"]["verdict"] == "no CUDA device"
    assert runs.count(("some", (30, 30), "auto", None)) == 3
    assert runs.count(("some", (50, 50), 512, 1)) == 2
    assert "| memory, CPU" in (tmp_path / "bench-restore.md").read_text()


def test_gpu_has_rows_of_the_published_size(
    runs: list[tuple[str, tuple[int, int], object, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restore, "CUDA", True)
    rows = {(row.part, row.name): row.value for row in restore.cuda_rows(tmp_path)}
    part = "CUDA, published size, bfloat16, 50²"
    assert rows[part, "memory, tiles of 512"] == 50 and rows[part, "time, tiles of 512"] == 2.5
    assert ("full", (40, 40), None, 8) in runs and restore.memory_rows("some", tmp_path) == []

"""The data benchmark: its table is whole and honest, and what it times is the real thing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.shards.writer import write_shards
from datamodules.sources.base import FilePair
from modules.clip.preprocess import CLIP_STD, clip_preprocess
from tests.benchmarks.baseline import load_batch
from tests.benchmarks.laps import Laps
from tests.benchmarks.sets import make_pairs
from tests.benchmarks.speed import open_draws, trace
from tests.benchmarks.table import Row, Target, markdown, write_results
from tests.conftest import form

SOURCES = ["1280x720", "512x512"]
PARTS = [*SOURCES, "2 shards", "memory", "resume"]
WAYS = {
    "plain",
    "ours, npy",
    "ours / plain, npy",
    "ours, npy: loading only (a worker)",
    "ours, npy: floats and CLIP view only (the device)",
    "ours, png",
    "ours / plain, png",
    "ours, png: loading only (a worker)",
    "ours, noisy on the fly: loading only",
    "ours, jpeg-compressed on the fly: loading only",
    "ours, uncompleted on the fly: loading only",
    "ours, npy, 2 workers: loading only",
    "ours, npy, 2 workers: CLIP view too",
    "step of plain: read PNG",
    "step of ours, npy: read and cut",
    "step of ours, npy: orient",
    "step of ours, npy: collate",
    "step of ours, npy: CLIP view",
    "npy shards, a pair",
}
ELSEWHERE = {
    "open, index made anew",
    "open, index there",
    "100 samples: resident (VmRSS)",
    "200 samples: resident (VmRSS)",
    "200 samples: private, what the data added",
    "first batch of 16 at draw 0",
    "first batch of 16 at draw 10,000,000",
    "stream: a skipped sample, not decoded",
    "stream: going on at draw 10,000,000, extrapolated",
}


@pytest.fixture
def pairs(tmp_path: Path) -> list[FilePair]:
    return make_pairs(tmp_path / "files", 96, 80, 3)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the command writes, as JSON and as a page; nothing else stays."""
    out, scratch = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("scratch")
    command = [sys.executable, "-m", "tests.benchmarks.data", "--quick", "--out", str(out)]
    environment = os.environ | {"TMPDIR": str(scratch)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert not list(scratch.glob("bench-*"))
    page = (out / "bench-data.md").read_text()
    return json.loads((out / "bench-data.json").read_text()), page


@pytest.mark.slow
def test_command_measures_everything(found: tuple[dict[str, Any], str]) -> None:
    rows = found[0]["rows"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == PARTS
    for part in SOURCES:
        assert {row["name"] for row in rows if row["part"] == part} >= WAYS
    assert {row["name"] for row in rows} >= ELSEWHERE
    assert all(math.isfinite(row["value"]) and row["value"] > 0 for row in rows)


@pytest.mark.slow
def test_page_shows_every_row_and_judges_each_target(found: tuple[dict[str, Any], str]) -> None:
    result, page = found
    judged = [row for row in result["rows"] if row["target"]]
    assert [row["target"]["limit"] for row in judged] == [4, 4, 2]
    assert all(row["verdict"] in {"met", "missed"} for row in judged)
    assert sum(line.startswith("| ") for line in page.splitlines()) == 2 + len(result["rows"])
    assert result["machine"]["cores"] and str(result["machine"]["cpu"]) in page


def test_missed_targets_are_called_missed(tmp_path: Path) -> None:
    faster, soon = Target(4, at_least=True), Target(2, at_least=False)
    rows = [
        Row("a", "ratio", "x", [9.0, 3.5, 3.0], faster),
        Row("a", "more", "x", [4.0], faster),
        Row("a", "late", "s", [2.0], soon),
        Row("a", "early", "s", [0.1234], soon),
        Row("a", "bare", "s", [1234.5]),
    ]
    assert [row.verdict for row in rows] == ["missed", "met", "missed", "met", ""]
    assert rows[0].cells() == ("a", "ratio", "3.5", "x", "3 to 9", ">= 4", "missed")
    assert rows[4].cells()[2] == "1,234"
    assert len({len(line) for line in markdown(rows).splitlines()}) == 1
    write_results(tmp_path, "data", rows, {"cpu": "abacus"}, ["a note"])
    page = (tmp_path / "bench-data.md").read_text()
    assert markdown(rows) in page and "abacus" in page and "a note" in page


def test_laps_add_up() -> None:
    laps = Laps()
    for step in ("a", "b", "a"):
        laps(step)
    assert list(laps.seconds) == ["a", "b"]
    assert laps.total == sum(laps.seconds.values()) > 0


def test_plain_way_gives_aligned_crops_and_clip_s_view(pairs: list[FilePair]) -> None:
    same = [FilePair("train", p.word, p.key, p.source, p.gt, p.gt) for p in pairs]
    lq, gt, view = load_batch(same, 64, 48, np.random.default_rng(0), Laps())
    assert lq.shape == (3, 3, 64, 64) and lq.dtype == torch.float32
    assert torch.equal(lq, gt)
    level = 1 / 255 / min(CLIP_STD)
    assert (view - clip_preprocess(lq, 48)).abs().max() < 1.01 * level


def test_plain_way_shows_what_lies_in_the_files(pairs: list[FilePair]) -> None:
    """A crop of the whole picture is the picture, turned: the same colours, in RGB."""
    square = make_pairs(pairs[0].lq.parent / "square", 64, 64, 1)
    lq, gt, _ = load_batch(square, 64, 48, np.random.default_rng(0), Laps())
    for tensor, image in zip((lq[0], gt[0]), square[0].make(), strict=True):
        levels = (tensor * 255).round().to(torch.uint8).flatten(1).sort().values
        assert torch.equal(levels, torch.from_numpy(image).flatten(0, 1).T.sort().values)


def test_timed_steps_are_those_of_a_training_draw(pairs: list[FilePair], tmp_path: Path) -> None:
    write_shards(pairs, tmp_path / "shards", form(), 0.0, num_workers=0)
    dataset = open_draws(tmp_path / "shards", patch=32)
    for n in range(6):
        expected, traced = dataset[n], trace(dataset, n, Laps())
        assert np.array_equal(expected.sample.lq, traced.sample.lq)
        assert np.array_equal(expected.sample.gt, traced.sample.gt)
        assert expected.sample[2:] == traced.sample[2:]


def test_draws_can_be_of_one_word(pairs: list[FilePair], tmp_path: Path) -> None:
    write_shards(pairs, tmp_path / "shards", form(), 0.0, num_workers=0)
    word = pairs[1].word
    dataset = open_draws(tmp_path / "shards", [word], patch=32)
    assert {dataset[n].sample.degradation for n in range(5)} == {word}

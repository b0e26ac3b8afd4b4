"""The whole chain through its public entry, on two small photographs: run, skip, resume, refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from datamodules.images import read_image
from pipeline.models import BadModel, load_controller, load_restorer
from tests.conftest import CHAIN, call, command, photograph


@pytest.mark.slow
def test_chain_ends_in_table_and_report(finished: Path) -> None:
    metrics = json.loads((finished / "evaluation" / "metrics.json").read_text())
    assert len(metrics["tasks"]) == 10
    assert all(task["images"] == 1 for task in metrics["tasks"])
    assert sum(map(sum, metrics["confusion"])) == 10
    assert {"LPIPS", "FID"} <= set(metrics["missing"])
    page = (finished / "evaluation" / "report.html").read_text()
    assert page.count("<img") == 3 * 10
    assert "minutes of training" in page
    assert 'src="http' not in page


@pytest.mark.slow
def test_fresh_stages_are_skipped(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    for stage in CHAIN:
        assert "fresh, nothing to do" in call(finished, stage).stdout
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train-controller", "train-restorer"])
def test_killed_training_goes_on_as_if_undisturbed(
    finished: Path, tmp_path: Path, stage: str
) -> None:
    name = stage.removeprefix("train-")
    for other in ("shards", "captions", "controller"):
        if other != name:
            (tmp_path / other).symlink_to(finished / other)
    last = tmp_path / name / "checkpoints" / "last.ckpt"
    # Slow steps, so that the kill falls between the first checkpoint and the end.
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.slow_steps", *command(tmp_path, stage)[3:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert not (tmp_path / name / "model.safetensors").exists()
    result = call(tmp_path, stage)
    assert "resuming from" in result.stdout, result.stderr
    resumed, straight = (
        load_file(run / name / "model.safetensors") for run in (tmp_path, finished)
    )
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)


@pytest.mark.slow
def test_photographs_are_restored(finished: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(photograph(37, 51)).save(photos / "a.jpg")
    Image.fromarray(photograph(50, 40)[..., 0]).save(photos / "grey.png")
    (photos / "broken.png").write_bytes(b"no image")
    result = call(
        finished, "restore", f"restore.input={photos}", f"restore.output={tmp_path / 'out'}"
    )
    assert result.returncode == 1
    assert "1 of 3 not restored" in result.stderr
    assert "broken.png: not an image" in result.stderr
    assert read_image(tmp_path / "out" / "a.png").shape == (37, 51, 3)
    assert read_image(tmp_path / "out" / "grey.png").shape == (50, 40, 3)


@pytest.mark.slow
def test_restoring_is_reproducible(finished: Path, tmp_path: Path, save_image: object) -> None:
    photo = save_image("photo.png")  # type: ignore[operator]
    for name in ("one", "two"):
        out = f"restore.output={tmp_path / name}"
        assert call(finished, "restore", f"restore.input={photo}", out).returncode == 0
    one, two = ((tmp_path / name / "photo.png").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["restore.input=gone.png", "restore.output=out"], "gone.png"),
        (["restore.input=x.png"], "make restore INPUT=... OUTPUT=..."),
        (["restore.input=x.png", "restore.output=."], "x.png"),
    ],
)
def test_what_cannot_be_restored_is_named(finished: Path, overrides: list[str], named: str) -> None:
    result = call(finished, "restore", *overrides)
    assert result.returncode == 1
    assert named in result.stderr
    assert "Traceback" not in result.stderr


def test_stage_without_the_one_before_says_so(tmp_path: Path) -> None:
    result = call(tmp_path, "captions")
    assert result.returncode == 1
    assert "index.json" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "captions").exists()


def test_unknown_key_stops_before_any_work(tmp_path: Path) -> None:
    result = call(tmp_path, "shards", "restorer.stepz=3")
    assert result.returncode == 1
    assert "restorer.stepz" in result.stderr
    assert not (tmp_path / "shards").exists()


@pytest.mark.slow
def test_checkpoint_of_another_architecture_is_refused(finished: Path, tmp_path: Path) -> None:
    controller = finished / "controller" / "model.safetensors"
    with pytest.raises(BadModel, match=r"restorer/model\.safetensors is no controller of ours"):
        load_controller(finished / "restorer" / "model.safetensors")
    with pytest.raises(BadModel, match="another controller"):
        load_restorer(finished / "restorer" / "model.safetensors", Path(__file__))
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(BadModel, match="unknown format"):
        load_controller(foreign)
    foreign.write_bytes(controller.read_bytes()[:5000])
    with pytest.raises(BadModel, match="not a whole safetensors file"):
        load_controller(foreign)
    with pytest.raises(BadModel, match="train it first"):
        load_controller(tmp_path / "gone.safetensors")

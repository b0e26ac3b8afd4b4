"""The whole chain through its public entry, on two small photographs: run, skip, resume, refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from datamodules.images import read_image
from pipeline.models.store import BadModel, load_controller, load_restorer
from pipeline.restore.cli import main as restore
from tests.conftest import CHAIN, TINY_RUN, call, command, photograph


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
def test_one_task_with_images_of_several_sizes(
    tmp_path: Path, save_image: Callable[..., Path]
) -> None:
    """The controller has one word to tell; no two validation images make a batch."""
    names = {"train": ["a", "b", "c"], "val": ["d", "e", "f"]}
    for split, of_split in names.items():
        for i, name in enumerate(of_split):
            for side in ("GT", "LQ"):
                save_image(f"pairs/{split}/rainy/{side}/{name}.png", 48 + 8 * i, 64, seed=i)
    lines = [{"source": f"{name}.png", "caption": f"photograph {name}"} for name in "abcdef"]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = [setting for setting in TINY_RUN if not setting.startswith("shards.source")]
    settings += ["source=folder", f"shards.source.root={tmp_path / 'pairs'}", "captioner=file"]
    settings += [f"captions.captioner.path={tmp_path / 'captions.jsonl'}"]
    settings += [f"run_dir={tmp_path / 'run'}"]
    for stage in CHAIN:
        line = [sys.executable, "-m", "pipeline", stage, *settings]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert [task["images"] for task in metrics["tasks"]] == [3]
    assert metrics["confusion"] == [[3]]


@pytest.mark.slow
def test_fresh_stages_are_skipped(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    for stage in CHAIN:
        assert "fresh, nothing to do" in call(finished, stage).stdout
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("train-controller", signal.SIGKILL),
        ("train-restorer", signal.SIGKILL),
        ("train-restorer", signal.SIGINT),
    ],
)
def test_killed_training_goes_on_as_if_undisturbed(
    finished: Path, tmp_path: Path, stage: str, number: signal.Signals
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
        stderr=subprocess.PIPE,
        text=True,
        # Ignored, where the tests' shell says so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert ("run the same command to resume" in error) == (number == signal.SIGINT)
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert not (tmp_path / name / "model.safetensors").exists()
    result = call(tmp_path, stage)
    assert "resuming from" in result.stdout, result.stderr
    resumed, straight = (
        load_file(run / name / "model.safetensors") for run in (tmp_path, finished)
    )
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)


@pytest.mark.slow
@pytest.mark.usefixtures("own_logging")
def test_photographs_are_restored_by_a_run(finished: Path, tmp_path: Path) -> None:
    Image.fromarray(photograph(37, 51)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    status = restore([str(tmp_path / "a.png"), "-o", str(out), "-m", str(finished), "--steps", "1"])
    assert status == 0
    assert read_image(out / "a.png").shape == (37, 51, 3)


def test_stage_without_the_one_before_says_so(tmp_path: Path) -> None:
    result = call(tmp_path, "captions")
    assert result.returncode == 1
    assert "index.json" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "captions").exists()


def test_what_is_for_submitting_is_refused_elsewhere(tmp_path: Path) -> None:
    """Who asks to be shown what would be done does not want it done."""
    for option in ("--dry-run", "--upto=captions"):
        result = call(tmp_path, "shards", option)
        assert result.returncode == 2 and "submit" in result.stderr
    assert not (tmp_path / "shards").exists()


def test_unknown_key_stops_before_any_work(tmp_path: Path) -> None:
    result = call(tmp_path, "shards", "restorer.stepz=3")
    assert result.returncode == 1
    assert "restorer.stepz" in result.stderr
    assert not (tmp_path / "shards").exists()


@pytest.mark.slow
def test_checkpoint_of_another_architecture_is_refused(finished: Path, tmp_path: Path) -> None:
    controller = finished / "controller" / "model.safetensors"
    with pytest.raises(BadModel, match=r"restorer/model\.safetensors is neither a controller"):
        load_controller(finished / "restorer" / "model.safetensors")
    with pytest.raises(BadModel, match="a controller other than"):
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

"""A short version of the experiment of the model that comes with the project learns to restore."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.degradations import WORDS
from pipeline.chain import STAGES
from pipeline.compose import load_config
from pipeline.stage import run_stage

TAUGHT = ("low-light", "noisy")
SHORT = [
    "experiment=photos",
    "source=embedded",
    "captioner=demo",
    f"shards.source.words=[{','.join(TAUGHT)}]",
    "shards.source.photos.train=[chelsea,china,flower]",
    "shards.source.photos.val=[coffee]",
    "shards.source.draws={train: 12, val: 6}",
    "shards.source.crop=96",
    *(f"~data.task_weights.{word}" for word in WORDS if word not in TAUGHT),
    "clip.architecture.vision_cfg.image_size=48",
    "clip.architecture.vision_cfg.width=32",
    "clip.architecture.vision_cfg.layers=1",
    "clip.architecture.text_cfg.width=32",
    "clip.architecture.text_cfg.layers=1",
    "controller.max_steps=60",
    "controller.batch_size=16",
    "controller.val_every_n_steps=60",
    "restorer.max_steps=500",
    "restorer.patch_size=64",
    "restorer.context_size=96",
    "restorer.text_prompt_prob=0",
    "restorer.swapped_prompt_prob=0",
    "restorer.warmup_steps=30",
    "restorer.ema_decay=0.95",
    "restorer.val_every_n_steps=500",
    "sampler.num_steps=1",
    "num_workers=0",
    "trainer.precision=32-true",
]


@pytest.mark.slow
def test_short_training_reaches_its_figure(tmp_path: Path) -> None:
    config = load_config([*SHORT, f"run_dir={tmp_path}"])
    for stage in STAGES.values():
        run_stage(stage, config)
    figures = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    mean = figures["mean"]
    assert mean["restored"]["psnr"] > mean["degraded"]["psnr"] + 3, figures["tasks"]
    assert all(t["restored"]["psnr"] > t["degraded"]["psnr"] for t in figures["tasks"])
    assert figures["accuracy"] > 0.9

"""What many tests start from: small photographs, pairs on disk, a small run."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from datamodules.shards.writer import Format
from datamodules.sources.folder import PairFolder
from pipeline.compose import load_config
from pipeline.config import Config, Section

S = TypeVar("S", bound=Section)
TINY_RUN = [
    "experiment=demo",
    "trainer.devices=1",
    "shards.source.draws={train: 2, val: 1}",
    "shards.source.crop=48",
    "shards.source.photos.train=[chelsea]",
    "shards.source.photos.val=[coffee]",
    "clip.architecture.embed_dim=32",
    "clip.architecture.vision_cfg.image_size=32",
    "clip.architecture.vision_cfg.patch_size=8",
    "clip.architecture.vision_cfg.width=32",
    "clip.architecture.vision_cfg.layers=2",
    "clip.architecture.text_cfg.width=16",
    "controller.max_steps=4",
    "controller.batch_size=10",
    "controller.val_every_n_steps=2",
    "restorer.max_steps=4",
    "restorer.batch_size=2",
    "restorer.patch_size=32",
    "restorer.swapped_prompt_prob=0.5",
    "restorer.val_every_n_steps=2",
    "network.context_dim=32",
    "network.multipliers=[1, 1]",
    "sampler.num_steps=2",
    "evaluate.batch_size=2",
    "num_workers=0",
]
"""Every stage in seconds: two small photographs, four steps."""


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture, so that degradations have something to work on."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def save_image(tmp_path: Path) -> Callable[..., Path]:
    """Save a picture below the test's folder."""

    def save(name: str, height: int = 40, width: int = 48, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(height, width, seed)).save(path)
        return path

    return save


@pytest.fixture
def pair_folder(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    """ROOT/{train,val}/{word}/{LQ,GT}: two words, three training pairs and one more each."""
    for split, count in (("train", 3), ("val", 1)):
        for word in ("noisy", "rainy"):
            for i in range(count):
                save_image(f"pairs/{split}/{word}/GT/{word}{i}.png", seed=i)
                save_image(f"pairs/{split}/{word}/LQ/{word}{i}.png", seed=i + 10)
    return tmp_path / "pairs"


def paired_folder(root: Path, **changes: Any) -> PairFolder:
    """A source of pairs below a folder."""
    settings = {"splits": ["train", "val"], "words": None, "synthetic": [], "seed": 0}
    return PairFolder(root=str(root), **(settings | changes))


def form(**changes: Any) -> Format:
    """A format of shards that hold two of the small pictures each."""
    pair_mb = 40 * 48 * 3 * 2 / 1e6
    return Format(**({"encoding": "npy", "tile_size": None, "shard_mb": 2 * pair_mb} | changes))


@pytest.fixture
def own_logging() -> Iterator[None]:
    """For tests of a command that sets logging up: afterwards it is as it was."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Config]:
    """The configuration of a small run below the test's folder, with more overrides."""

    def load(*overrides: str) -> Config:
        return load_config([*TINY_RUN, f"run_dir={tmp_path / 'run'}", *overrides])

    return load


def section(kind: type[S], **changes: Any) -> S:
    """A section of the demo's configuration, with changes."""
    return load_config(["experiment=demo"])[kind].model_copy(update=changes)


CHAIN = ["shards", "captions", "train-controller", "train-restorer", "evaluate"]


def command(run: Path, stage: str, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", stage, *TINY_RUN, f"run_dir={run}", *overrides]


def call(run: Path, stage: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run, stage, *overrides), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all its stages done."""
    run = tmp_path_factory.mktemp("run")
    for stage in CHAIN:
        result = call(run, stage)
        assert result.returncode == 0, result.stderr
    return run

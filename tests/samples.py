"""Samples made without files, and shards of them, for tests that need many or odd ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images import Pixels
from datamodules.shards.index import Shard
from datamodules.shards.writer import Format, write_shards
from datamodules.sources.base import PlannedSample, stable_seed


@dataclass(frozen=True)
class Made:
    """A sample of random pixels that its key alone decides."""

    split: str
    words: tuple[str, ...]
    key: str
    height: int = 40
    width: int = 48
    paired: bool = True
    pause: float = 0.0
    """Seconds that making it takes."""

    @property
    def source(self) -> str:
        return f"{self.key}.png"

    @property
    def pixels(self) -> int:
        return self.height * self.width * (2 if self.paired else 1)

    def make(self) -> tuple[Pixels | None, Pixels]:
        time.sleep(self.pause)
        rng = np.random.default_rng(stable_seed(self.key))
        lq, gt = rng.integers(0, 256, (2, self.height, self.width, 3), dtype=np.uint8)
        return (lq if self.paired else None), gt


@dataclass(frozen=True)
class SlowPairs:
    """A source whose pairs take their time, for runs that are to be killed on the way."""

    pairs: int
    pause: float

    def plan(self) -> list[Made]:
        train = many("train", "rainy", self.pairs, pause=self.pause)
        return [*train, *many("val", "rainy", 2)]

    def files(self) -> list[Path]:
        return []


def unused(**settings: Any) -> None:
    """In the configuration, the target of what a test has no use for, since it imports nothing."""


def many(split: str, word: str, count: int, **changes: Any) -> list[Made]:
    """`count` samples of a word, with keys such as `rainy-train-003`."""
    return [Made(split, (word,), f"{word}-{split}-{i:03d}", **changes) for i in range(count)]


def write(
    folder: Path, samples: Sequence[PlannedSample], per_shard: int = 1000, **changes: Any
) -> list[Shard]:
    """Write shards of at most so many samples of 40 x 48 pixels each."""
    form = {"encoding": "npy", "tile_size": None, "shard_mb": (per_shard + 0.5) * 40 * 48 * 6 / 1e6}
    return write_shards(samples, folder, Format(**(form | changes)), 0.0, num_workers=0)

"""The DataModule of tests: small crops of pairs, read from a folder of shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datamodules.augment import RandomPatch
from datamodules.batch import Batch, IndexedSample, collate
from datamodules.datamodule import Examples, Loading, Mixing, RestorationDataModule


def data_module(
    shards: Path,
    captions: Path | None = None,
    batch_size: int = 4,
    val_batch_size: int = 2,
    val_images_per_task: int | None = None,
    num_workers: int = 0,
    collate: Callable[[list[IndexedSample]], Batch] = collate,
) -> RestorationDataModule:
    return RestorationDataModule(
        shards,
        Examples(RandomPatch(16), True, captions),
        Loading(batch_size, val_batch_size, val_images_per_task, num_workers, collate),
        Mixing(seed=0, task_weights={}, max_skipped_fraction=0.01),
    )

"""The DataModule of both stages: the mixture for training, every sample once for validation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from datamodules.captions import read_captions
from datamodules.datasets import (
    Augment,
    Batch,
    DrawDataset,
    Item,
    TooManyBadSamples,
    WholeDataset,
    collate,
)
from datamodules.mixture import DrawSampler, Mixture, ShareSampler
from datamodules.reader import ShardSet

log = logging.getLogger(__name__)


class MixedData(LightningDataModule):
    """Ten tasks in equal shares, whatever their sizes; the state is the number of draws.

    Resuming from a checkpoint goes on with the next draw, on any number of ranks and workers.
    """

    def __init__(
        self,
        shards: Path,
        captions: Path | None,
        augment: Augment,
        batch_size: int,
        val_batch_size: int,
        val_per_task: int | None,
        workers: int,
        seed: int,
        max_skipped_share: float,
    ) -> None:
        """Read shards.

        Args:
            shards: folder of shards with their index.
            captions: caption file; None where captions are not needed.
            augment: what training does to a pair of images.
            batch_size: per device.
            val_batch_size: per device, for validation.
            val_per_task: how many images of each task validation looks at; None for all.
            workers: data processes per device.
            seed: of the order and the augmentation.
            max_skipped_share: of the draws; more damaged ones stop training.
        """
        super().__init__()
        self._shards, self._captions = shards, captions
        self._augment, self._batch_size, self._val_batch_size = augment, batch_size, val_batch_size
        self._val_per_task, self._workers, self._seed = val_per_task, workers, seed
        self._max_skipped_share = max_skipped_share
        self._draws = self._skipped = 0

    def words(self) -> tuple[str, ...]:
        """The degradations there are training samples of."""
        return ShardSet(self._shards, "train").words

    def train_dataloader(self) -> DataLoader[Item]:
        """Endless batches, starting after the draws already used.

        Raises:
            FileNotFoundError: captions are needed, and there is no caption file.
        """
        shards = ShardSet(self._shards, "train")
        captions = None if self._captions is None else read_captions(self._captions)
        mixture = Mixture({word: len(found) for word, found in shards.tasks.items()}, self._seed)
        dataset = DrawDataset(shards, captions, mixture, self._augment)
        rank, world = self._rank_of_world()
        return self._loader(dataset, DrawSampler(self._draws, rank, world), self._batch_size)

    def val_dataloader(self) -> DataLoader[Item]:
        """The validation samples, each once over all ranks."""
        shards = ShardSet(self._shards, "val")
        addresses = [a for found in shards.tasks.values() for a in found[: self._val_per_task]]
        dataset = WholeDataset(addresses)
        sampler = ShareSampler(len(addresses), *self._rank_of_world())
        return self._loader(dataset, sampler, self._val_batch_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the draws used, and log and count the damaged samples passed over.

        Raises:
            TooManyBadSamples: their share is larger than allowed.
        """
        if self.trainer is not None and self.trainer.training:
            world = self._rank_of_world()[1]
            self._draws += len(batch.valid) * world
            self._count_skipped(batch.skipped, world)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The draws used by all ranks together."""
        return {"draws": self._draws, "skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the draws of a checkpoint."""
        self._draws, self._skipped = state_dict["draws"], state_dict["skipped"]

    def _count_skipped(self, skipped: list[str], world: int) -> None:
        for line in skipped:
            log.warning("skipped a damaged training sample: %s", line)
        self._skipped += len(skipped) * world
        if self._skipped > max(1.0, self._max_skipped_share * max(self._draws, 1000)):
            raise TooManyBadSamples(
                f"about {self._skipped} of {self._draws} training draws hit damaged samples, more "
                f"than data.max_skipped_share={self._max_skipped_share} allows; see the warnings "
                "above for which, and make the shards again"
            )

    def _rank_of_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(self, dataset: Any, sampler: Any, batch_size: int) -> DataLoader[Item]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self._workers,
            collate_fn=collate,
            pin_memory=isinstance(getattr(self.trainer, "accelerator", None), CUDAAccelerator),
        )

"""The DataModule of both stages: the mixture for training, every sample once for validation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.augment import Augment
from datamodules.batch import Batch, IndexedSample, collate
from datamodules.captions import read_captions
from datamodules.dataset import EvalDataset, TrainDataset, size_of
from datamodules.errors import TooManyBadSamples
from datamodules.mixture import DistributedEvalSampler, Mixture, TrainSampler
from datamodules.shards.reader import ShardSet

log = logging.getLogger(__name__)

COUNT_EVERY = 20
"""Batches after which the ranks add up what they have drawn and skipped, and log it."""


@dataclass(frozen=True)
class Examples:
    """What one example of training is.

    Attributes:
        augment: chooses the crop of an image.
        with_clean: whether the clean images are wanted beside the degraded ones.
        captions: caption file; None where captions are not needed.
        color_jitter: strength of the colour jitter of clean images that are degraded on the fly.
    """

    augment: Augment
    with_clean: bool
    captions: Path | None = None
    color_jitter: float = 0.0


@dataclass(frozen=True)
class Loading:
    """How examples become batches.

    Attributes:
        batch_size: images of a training batch, on all devices together.
        val_batch_size: images of a validation batch, per device; 1 is used where `collate` cannot
            stack the validation images.
        val_images_per_task: how many images of each task validation takes; None for all.
        num_workers: data processes per device.
        collate: makes a batch of samples.
    """

    batch_size: int
    val_batch_size: int
    val_images_per_task: int | None
    num_workers: int
    collate: Callable[[list[IndexedSample]], Batch] = collate


@dataclass(frozen=True)
class Mixing:
    """In which order and proportions training draws.

    Attributes:
        seed: of the order and the augmentation.
        task_weights: how often each task is drawn relative to the others; see Mixture.
        max_skipped_fraction: the fraction of draws that may hit damaged samples; more of them stop
            training.
    """

    seed: int
    task_weights: Mapping[str, int]
    max_skipped_fraction: float


class RestorationDataModule(LightningDataModule):
    """Tasks in fixed proportions, whatever their sizes; the state is the number of draws.

    Resuming from a checkpoint goes on with the next draw, on any number of ranks and workers.
    """

    def __init__(self, shards: Path, examples: Examples, loading: Loading, mixing: Mixing) -> None:
        """Read the shards whose index is in the folder `shards`.

        Raises:
            MissingShards: there is no index.
            BadIndex: it is damaged, or lists no training samples.
        """
        super().__init__()
        self._shards, self._examples = shards, examples
        self._loading, self._mixing = loading, mixing
        self._draws = self._skipped = self._batches = 0
        self._words = self.words()
        self._drawn = dict.fromkeys(self._words, 0)
        self._uncounted = torch.zeros(len(self._words) + 1, dtype=torch.int64)

    def words(self, split: str = "train") -> tuple[str, ...]:
        """The degradations there are samples of in a split."""
        return ShardSet(self._shards, split).words

    def train_dataloader(self) -> DataLoader[IndexedSample]:
        """Endless batches, starting after the draws already used.

        Raises:
            FileNotFoundError: captions are needed, and there is no caption file.
            TaskWeightsError: the weights do not fit the tasks.
            ValueError: a batch cannot be split evenly over the devices.
        """
        rank, world = self._rank_of_world()
        batch_size, examples = self._loading.batch_size, self._examples
        if batch_size % world:
            raise ValueError(
                f"a batch_size of {batch_size} images cannot be split evenly over {world} "
                "devices; take a multiple"
            )
        shards = ShardSet(self._shards, "train")
        captions = None if examples.captions is None else read_captions(examples.captions)
        counts = {word: samples.counts for word, samples in shards.tasks.items()}
        mixture = Mixture(counts, self._mixing.seed, self._mixing.task_weights, shards.store.window)
        dataset = TrainDataset(
            shards, captions, mixture, examples.augment, examples.with_clean, examples.color_jitter
        )
        sampler = TrainSampler(self._draws, rank, world)
        return self._loader(dataset, sampler, batch_size // world)

    def val_dataloader(self) -> DataLoader[IndexedSample]:
        """The validation samples, each once over all ranks."""
        shards = ShardSet(self._shards, "val")
        most = self._loading.val_images_per_task
        samples = [address for found in shards.tasks.values() for address in found[:most]]
        sampler = DistributedEvalSampler(len(samples), *self._rank_of_world())
        batch_size, stacks = self._loading.val_batch_size, self._loading.collate is collate
        if batch_size > 1 and stacks and len(set(map(size_of, samples))) > 1:
            log.info("validation images differ in size, so each is a batch of its own")
            batch_size = 1
        return self._loader(EvalDataset(samples), sampler, batch_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the draws used, and log and count the damaged samples passed over.

        Raises:
            TooManyBadSamples: their share is larger than allowed; on all ranks at once.
        """
        if self.trainer is not None and self.trainer.training:
            self._draws += len(batch.valid) * self._rank_of_world()[1]
            self._batches += 1
            for line in batch.skipped:
                log.warning("skipped a training sample: %s", line)
            for word in batch.degradation:
                self._uncounted[self._words.index(word)] += 1
            self._uncounted[-1] += len(batch.skipped)
            due = self._batches % COUNT_EVERY == 0
            if due or self._rank_of_world()[1] == 1:
                self._count(self._of_all_ranks(self._uncounted))
                self._check_skipped()
            if due:
                self._log_counts()
        return batch

    def teardown(self, stage: str) -> None:
        """Say what was drawn."""
        drawn = {word: count for word, count in self._drawn.items() if count}
        if stage == "fit" and drawn and self._rank_of_world()[0] == 0:
            counts = ", ".join(f"{word} {count}" for word, count in drawn.items())
            log.info(
                "drawn for training: %s; damaged samples passed over: %d", counts, self._skipped
            )

    def state_dict(self) -> dict[str, Any]:
        """The draws used by all ranks together; all of them ask for it at once."""
        self._count(self._of_all_ranks(self._uncounted))
        self._log_counts()
        return {"draws": self._draws, "skipped": self._skipped, "drawn": dict(self._drawn)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the draws of a checkpoint."""
        self._draws, self._skipped = state_dict["draws"], state_dict["skipped"]
        self._drawn |= state_dict["drawn"]

    def _count(self, new: Tensor) -> None:
        """Add what all ranks have drawn, and skipped, since the last time."""
        self._uncounted.zero_()
        *drawn, skipped = new.tolist()
        self._skipped += skipped
        for word, count in zip(self._words, drawn, strict=True):
            self._drawn[word] += count

    def _log_counts(self) -> None:
        if self.trainer is not None:
            total = max(1, sum(self._drawn.values()))
            fractions = {f"drawn/{word}": count / total for word, count in self._drawn.items()}
            for logger in self.trainer.loggers:
                logger.log_metrics(fractions | {"skipped": self._skipped}, self.trainer.global_step)

    def _check_skipped(self) -> None:
        allowed = self._mixing.max_skipped_fraction
        if self._skipped > max(1.0, allowed * max(self._draws, 1000)):
            raise TooManyBadSamples(
                f"{self._skipped} of {self._draws} training draws hit samples that cannot be used, "
                f"more than the fraction of {allowed} allowed; the warnings "
                "above name them"
            )

    def _of_all_ranks(self, counts: Tensor) -> Tensor:
        if self.trainer is None or self.trainer.world_size == 1:
            return counts.clone()
        on_device = counts.to(self.trainer.strategy.root_device, copy=True)
        summed: Tensor = self.trainer.strategy.reduce(on_device, reduce_op="sum")
        return summed.cpu()

    def _rank_of_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(self, dataset: Any, sampler: Any, batch_size: int) -> DataLoader[IndexedSample]:
        # Before workers are forked too: a forked OpenCV would wait for threads it does not have.
        cv2.setNumThreads(1)
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self._loading.num_workers,
            worker_init_fn=use_one_thread,
            collate_fn=self._loading.collate,
            pin_memory=isinstance(getattr(self.trainer, "accelerator", None), CUDAAccelerator),
        )


def use_one_thread(worker: int) -> None:
    """Limit OpenCV in a data process to one thread: there is one process per core."""
    cv2.setNumThreads(1)

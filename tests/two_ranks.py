"""Trains on two gloo ranks and writes what each saw: `python -m tests.two_ranks SCENARIO FOLDER`.

`train` trains to step 10 from the start, then goes on to step 8 from the checkpoint of one rank.
`stop` trains where each rank has its own copy of the shards, as the nodes of a cluster may have.
"""

import json
import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from datamodules.batch import Batch
from datamodules.datamodule import RestorationDataModule
from tests.training_data import data_module

EVERY = 5
"""Steps between two validations."""


class Noted(LightningModule):
    """Trains nothing, and notes the keys it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.trained: list[list[str]] = []
        self.validated: list[list[str]] = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.trained.append(
            [f"{key} {lq.sum()}" for key, lq in zip(batch.key, batch.lq, strict=True)]
        )
        return self.weight.sum()

    def on_validation_epoch_start(self) -> None:
        self.validated.append([])

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validated[-1] += [k for k, valid in zip(batch.key, batch.valid, strict=True) if valid]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class NotesEnd(Callback):
    """Notes which fault ended a rank's training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        note = self.folder / f"stopped-{trainer.global_rank}.txt"
        note.write_text(f"{type(exception).__name__}: {exception}")


def data(shards: Path, batch_size: int = 4, num_workers: int = 0) -> RestorationDataModule:
    return data_module(shards, batch_size=batch_size, val_batch_size=3, num_workers=num_workers)


def fit(
    folder: Path,
    shards: RestorationDataModule,
    steps: int,
    devices: int,
    start: Path | None = None,
    save: Path | None = None,
) -> Noted:
    """Train on some ranks, from a checkpoint and with one at step 6 if wanted."""
    callbacks: list[Callback] = [NotesEnd(folder)]
    if save is not None:
        keep = ModelCheckpoint(save.parent, save.stem, save_top_k=-1, every_n_train_steps=6)
        callbacks.append(keep)
    module = Noted()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        default_root_dir=folder,
        max_steps=steps,
        val_check_interval=EVERY,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        enable_checkpointing=save is not None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=shards, ckpt_path=start, weights_only=True)
    return module


def main(scenario: str, folder: Path) -> None:
    rank = os.environ.get("LOCAL_RANK", "0")
    if scenario == "stop":
        fit(folder, data(folder / f"shards-{rank}", batch_size=8), 200, devices=2)
        return
    shards = folder / "shards"
    fresh = fit(folder, data(shards), 10, devices=2, save=folder / "two.ckpt")
    resumed = fit(folder, data(shards), 8, devices=2, start=folder / "one.ckpt")
    seen = {
        "trained": fresh.trained,
        "validated": fresh.validated,
        "resumed": resumed.trained,
    }
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

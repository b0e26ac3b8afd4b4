"""Checkpoints of training: the last and the best are kept; a damaged one is passed over."""

from __future__ import annotations

import logging
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from datamodules.files import atomic_write
from pipeline.legacy import current_checkpoint

log = logging.getLogger(__name__)

BEST = "best"
LAST = ModelCheckpoint.CHECKPOINT_NAME_LAST


class DamagedCheckpoint(ValueError):
    """No checkpoint of a stage can be read."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint before and then takes its place.

    Lightning's own way goes through the folder for temporary files; from another disk it is copied
    over the checkpoint before, and half of both is left where the disk fills up or a kill strikes.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save.

        Raises:
            OSError: with the path and, on a full disk, what to do about it.
        """
        with atomic_write(Path(path)) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # of its archive, where the writing has failed before
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load; the states of classes that were called otherwise go by today's names."""
        return current_checkpoint(super().load_checkpoint(path, *args, **kwargs))


class StepCheckpoint(ModelCheckpoint):
    """Saves between steps alone.

    Lightning's own also looks after each batch of an accumulated step. In a run that goes on, it
    would take the first one for the step before and replace that one's checkpoint, which by then
    has drawn a batch whose gradients it lacks.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if the batch was the last one of a step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)


class BestCheckpoint(Callback):
    """Keeps the checkpoint whose validation was best, by a metric that is best when it is highest.

    The score to beat is that of the file. Lightning's own goes by what the checkpoint that training
    goes on from knows, which was saved before its step was validated.
    """

    def __init__(self, path: Path, monitor: str) -> None:
        """Keep it in a file."""
        self._path, self._monitor, self._score = path, monitor, -math.inf

    def state_dict(self) -> dict[str, float]:
        """The best score so far."""
        return {self._monitor: self._score}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the score to beat."""
        if best := _read(self._path):
            self._score = best["callbacks"][self.state_key][self._monitor]

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save, if the validation was the best one."""
        score = trainer.callback_metrics[self._monitor].item()
        # What the first rank finds, for all save together; never true of NaN.
        if trainer.strategy.broadcast(score > self._score):
            self._score = score
            trainer.save_checkpoint(self._path)


def checkpoint_callbacks(folder: Path, every: int, monitor: str) -> list[Callback]:
    """What saves them: `last.ckpt`, the two newest by step, and the best one by a metric.

    Args:
        folder: for the checkpoints.
        every: how many steps lie between two.
        monitor: the validation metric that is best when it is highest.
    """
    newest = StepCheckpoint(
        folder,
        filename="{step}",
        monitor="step",
        mode="max",
        save_top_k=2,
        save_last=True,
        every_n_train_steps=every,
        enable_version_counter=False,
    )
    return [newest, BestCheckpoint(folder / f"{BEST}.ckpt", monitor)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint but the best one's, None where there is none yet.

    Raises:
        DamagedCheckpoint: there are some, and all are damaged.
    """
    found = [path for path in folder.glob("*.ckpt") if path.stem != BEST]
    found.sort(key=lambda path: (path.stat().st_mtime_ns, path.stem == LAST), reverse=True)
    for path in found:
        if (fault := _fault_of(path)) is None:
            return path
        log.warning("%s is damaged (%s); trying the one before", path, fault)
    if found:
        raise DamagedCheckpoint(
            f"all {len(found)} checkpoints in {folder} are damaged; delete them to train anew"
        )
    return None


def load_best(folder: Path, module: nn.Module) -> None:
    """Give a module the weights that validated best, averaged ones where averages are validated.

    Where there are none, or they are damaged, it keeps what it has, with a warning.
    """
    if best := _read(folder / f"{BEST}.ckpt"):
        module.load_state_dict(best["state_dict"])
        log.info("the weights of step %d validated best and are kept", best["global_step"])
    else:
        log.warning("no validation has left its weights; the last ones are kept")


def _read(path: Path) -> dict[str, Any] | None:
    """A checkpoint; none where there is no file, or a damaged one, with a warning."""
    if not path.is_file():
        return None
    if fault := _fault_of(path):
        log.warning("%s is damaged (%s) and passed over", path, fault)
        return None
    return current_checkpoint(torch.load(path, map_location="cpu", weights_only=True))


def _fault_of(path: Path) -> str | None:
    """What is wrong with the archive, by the checksums in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return f"checksum of {damaged}" if damaged else None

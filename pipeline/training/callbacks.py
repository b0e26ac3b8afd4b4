"""What is watched while training besides the modules' own figures: speed, confusion, pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from datamodules.batch import Batch
from datamodules.files import atomic_write
from datamodules.images import Pixels, encode_png
from pipeline.tracking import TRACKER
from pipeline.training.daclip_module import DaClipModule

WARMUP = 100
"""The step up to which, and at the first update after it, weights are copied into the average."""
SAMPLES = "samples.png"
"""Picture of the last validation's samples: degraded, restored and clean of one in each row."""
CONFUSION, TABLE, SHEET = "confusion", "samples", "samples_sheet"
"""What pictures are called on W&B; the counts behind the first are a table, `confusion_table`."""
CONFUSION_CHART = "wandb/confusion_matrix/v1"
"""W&B's own chart of a confusion matrix, from the columns below."""
CONFUSION_FIELDS = {name: name for name in ("Actual", "Predicted", "nPredictions")}
CONFUSION_STRINGS = {"title": "degradations: actual and recognised"}
SHOWN, SIDE = 10, 192
"""How many samples are shown, each of another task, and how many pixels of their middle."""
GAP = 4
"""White pixels between pictures."""


class Throughput(Callback):
    """Logs the speed of training over the steps since the last time, validation left out.

    `images_per_s` is of all ranks, which go in step; `data_wait` is the share of the time that
    the first rank spent between batches, waiting for data; `gpu_peak_gb` is the most memory it
    has had in use, where it has a GPU.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        self._images = self._step = 0
        self._wait = self._work = self._last = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Wait for the first batch."""
        self._lap()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The batch is there."""
        self._wait += self._lap()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch; log every so many steps."""
        self._work += self._lap()
        self._images += len(batch.key) * trainer.world_size
        due = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due and trainer.global_step > self._step:
            self._log(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Leave out the time since the last batch of training."""
        self._lap()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log what is left."""
        if self._images:
            self._log(trainer, module)

    def _lap(self) -> float:
        """Seconds since the last call."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        values = {}
        if (seconds := self._wait + self._work) > 0:
            values = {"images_per_s": self._images / seconds, "data_wait": self._wait / seconds}
        if module.device.type == "cuda":
            values["gpu_peak_gb"] = torch.cuda.max_memory_allocated(module.device) / 1e9
        for logger in trainer.loggers if values else ():
            logger.log_metrics(values, trainer.global_step)
        self._wait = self._work = 0.0
        self._images, self._step = 0, trainer.global_step


class EmaCallback(WeightAveraging):
    """The exponential moving average of the weights, as the reference takes it (ema_pytorch).

    Its decay rises to the recipe's: 0 up to the first update after step 100, so that the weights
    are copied, and then 1 - (step - 99)^(-2/3), which is 0.99 at step 1,099 and 0.995 at step
    2,927. The average is on the device of the network. A run that goes on at its last step ends
    with the averages, too: Lightning puts them in place at the end of the training loop, which such
    a run leaves out.
    """

    def __init__(self, decay: float, every: int) -> None:
        """Take the weights in after the first step, and then every so many."""
        super().__init__(use_buffers=False, multi_avg_fn=self._take_in)
        self._decay, self._every = decay, every

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Before the network is on its device, where Lightning would look for it."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After the steps 0, `every`, 2 `every`, ..."""
        return step_idx is not None and step_idx % self._every == 0

    def _take_in(self, averages: Any, weights: Any, updates: Tensor | int) -> None:
        step = int(updates) * self._every
        decay = 0.0 if step - self._every <= WARMUP else 1 - (step - WARMUP + 1) ** (-2 / 3)
        get_ema_multi_avg_fn(min(decay, self._decay))(averages, weights, updates)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the averages in place, if they are not there yet."""
        self.on_train_end(trainer, module)


class Confusion(Callback):
    """Shows on W&B which degradation is taken for which, after each validation."""

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the matrix; its scalars are the module's."""
        assert isinstance(module, DaClipModule)
        words, counts = module.words, module.recognised.tolist()
        rows = [
            [true, found, count]
            for true, line in zip(words, counts, strict=True)
            for found, count in zip(words, line, strict=True)
        ]
        step = trainer.global_step
        TRACKER(lambda run: run.log({CONFUSION: _confusion_plot(rows), "step": step}))


class Shown(NamedTuple):
    """A validation sample to look at."""

    key: str
    degraded: Pixels
    restored: Pixels
    clean: Pixels


class Samples(Callback):
    """Shows a few validation samples, always the same: a picture in a folder, a table on W&B.

    They are the first of each task that this rank validates, cut to their middle.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the picture in a folder."""
        self._path = folder / SAMPLES
        self._shown: dict[str, Shown] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a task's first sample; the outputs are the restorations."""
        for i, word in enumerate(batch.degradation):
            if trainer.is_global_zero and batch.valid[i] and word not in self._shown:
                images = (_middle(image) for image in (batch.lq[i], outputs[i], batch.gt[i]))
                self._shown[word] = Shown(batch.key[i], *images)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Show them."""
        shown = dict(list(self._shown.items())[:SHOWN])
        self._shown, step = {}, trainer.global_step
        if shown:
            sheet = _sheet(list(shown.values()))
            with atomic_write(self._path) as file:
                file.write(encode_png(sheet))
            TRACKER(lambda run: run.log(_media(shown, sheet) | {"step": step}))


def _middle(image: Tensor) -> Pixels:
    """At most SIDE x SIDE pixels `[h, w, 3]` of an image `[3, H, W]`."""
    top, left = (max(0, (side - SIDE) // 2) for side in image.shape[1:])
    return image[:, top : top + SIDE, left : left + SIDE].permute(1, 2, 0).cpu().numpy()


def _sheet(shown: list[Shown]) -> Pixels:
    """Degraded, restored and clean side by side, a sample a row."""
    height = max(sample.clean.shape[0] for sample in shown) + GAP
    width = max(sample.clean.shape[1] for sample in shown) + GAP
    sheet = np.full((height * len(shown), width * 3, 3), 255, np.uint8)
    for row, sample in enumerate(shown):
        for column, image in enumerate(sample[1:]):
            place = sheet[row * height :, column * width :]
            place[: image.shape[0], : image.shape[1]] = image
    return sheet


def _media(shown: dict[str, Shown], sheet: Pixels) -> dict[str, object]:
    import wandb

    rows = [
        [word, key, *(wandb.Image(image) for image in images)]
        for word, (key, *images) in shown.items()
    ]
    table = wandb.Table(columns=["task", "key", "degraded", "restored", "clean"], data=rows)
    return {TABLE: table, SHEET: wandb.Image(sheet)}


def _confusion_plot(rows: list[list[Any]]) -> object:
    """W&B's own confusion matrix, of counts."""
    import wandb

    table = wandb.Table(columns=[*CONFUSION_FIELDS], data=rows)
    return wandb.plot_table(CONFUSION_CHART, table, CONFUSION_FIELDS, CONFUSION_STRINGS)

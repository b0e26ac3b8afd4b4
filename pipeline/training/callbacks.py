"""Callbacks of a training: gradient clipping, throughput, EMA, confusion matrix, samples, stop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from datamodules.batch import Batch
from datamodules.files import atomic_write
from datamodules.images import Pixels, encode_png
from pipeline.preemption import Stopped, listen, stop_requested
from pipeline.tracking import TRACKER
from pipeline.training.daclip_module import DaClipModule

WARMUP = 100
"""Up to this step, and at the first update after it, the average is a copy of the weights."""
SAMPLES = "samples.png"
"""Picture of the last validation's samples: degraded, restored and clean of one in each row."""
CONFUSION, TABLE, SHEET = "confusion", "samples", "samples_sheet"
"""Names of the pictures on W&B; the counts of the confusion matrix are `confusion_table`."""
CONFUSION_CHART = "wandb/confusion_matrix/v1"
"""W&B's own chart of a confusion matrix, from the columns below."""
CONFUSION_FIELDS = {name: name for name in ("Actual", "Predicted", "nPredictions")}
CONFUSION_STRINGS = {"title": "degradations: actual and recognised"}
SHOWN, SIDE = 10, 192
"""Number of samples shown, one per task, and the side of their centre crop in pixels."""
GAP = 4
"""White pixels between pictures."""
NAMED_KEYS = 8
"""Samples of a batch that an error message names."""


class NotFinite(ValueError):
    """A loss or gradient that is infinite or not a number."""


class GradientClipping(Callback):
    """Logs and clips the gradient norm; ends the training before a step with non-finite gradients.

    Gradients are already reduced over all ranks, so that all ranks stop at the same step. The
    weights stay as they were after the last good step.
    """

    def __init__(self, max_norm: float | None = None) -> None:
        """Clip gradients to a total norm of `max_norm`; None only checks and logs them."""
        self._max_norm = max_norm
        self._keys: list[str] = []

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remember the keys of the batch, for the error message."""
        self._keys = [*self._keys, *batch.key]

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Check and clip the gradients, and log their norm before clipping.

        Raises:
            NotFinite: the message names the step and the samples of the batch.
        """
        trained = [p for p in module.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in trained if p.grad is not None])
        if not torch.isfinite(norm):
            more = len(self._keys) - NAMED_KEYS
            shown = ", ".join(self._keys[:NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")
            raise NotFinite(
                f"the gradients of step {trainer.global_step} are not finite (norm {norm:g}); "
                f"the last checkpoint is kept. Rank {trainer.global_rank} had the batch {shown}. "
                "Train again with a lower learning rate, or with trainer.precision=32-true"
            )
        if self._max_norm is not None:
            clip_grads_with_norm_(trained, self._max_norm, norm)
        self._keys = []
        module.log("grad_norm", norm)


class Throughput(Callback):
    """Logs the training speed since the last log, validation excluded.

    `images_per_s` is over all ranks; `data_wait` is the fraction of time that the first rank
    waited for data between batches; `gpu_peak_gb` is its peak allocated memory in GB, if it has a
    GPU.
    """

    def __init__(self) -> None:
        """Start all counters at zero."""
        self._images = self._step = 0
        self._wait = self._work = self._last = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the stopwatch."""
        self._lap()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Add the time waited for the batch."""
        self._wait += self._lap()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch; log every `log_every_n_steps` steps."""
        self._work += self._lap()
        self._images += len(batch.key) * trainer.world_size
        due = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due and trainer.global_step > self._step:
            self._log(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Exclude the time since the last training batch."""
        self._lap()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the remaining steps."""
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
    """Exponential moving average of the weights, with the warm-up of the reference (ema_pytorch).

    The decay is 0 up to the first update after step 100, which copies the weights, and then
    1 - (step - 99)^(-2/3), at most `decay`: 0.99 at step 1,099, 0.995 at step 2,927. The average
    is on the device of the network. A run resumed at its last step ends with the averaged weights
    too, although it skips the end of the training loop, where Lightning swaps them in.
    """

    def __init__(self, decay: float, every: int) -> None:
        """Update the average after the first step, and then every `every` steps."""
        super().__init__(use_buffers=False, multi_avg_fn=self.update_average)
        self._decay, self._every = decay, every

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Choose the device of the average: the network is not on its device yet."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After the steps 0, `every`, 2 `every`, ..."""
        return step_idx is not None and step_idx % self._every == 0

    def update_average(self, averages: Any, weights: Any, updates: Tensor | int) -> None:
        """Take `weights` into `averages` in place; `updates` is the number of updates before."""
        step = int(updates) * self._every
        decay = 0.0 if step - self._every <= WARMUP else 1 - (step - WARMUP + 1) ** (-2 / 3)
        get_ema_multi_avg_fn(min(decay, self._decay))(averages, weights, updates)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Swap the averaged weights in, if they are not yet."""
        self.on_train_end(trainer, module)


class GracefulStop(Callback):
    """Saves a checkpoint and stops after the current step when any rank was asked to stop.

    It comes after all callbacks whose state belongs in the checkpoint.
    """

    def __init__(self, checkpoint: Path) -> None:
        """Save to the file `checkpoint`."""
        self._checkpoint = checkpoint

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Defer signals to the end of the step.

        This replaces Lightning's SIGTERM handler, installed just before, until training ends: that
        one runs a collective inside the signal handler, possibly in the middle of another one.
        """
        listen(may_finish=True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop if any rank was asked to and the batch completes an optimizer step.

        Raises:
            Stopped: after the checkpoint was written.
        """
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if not trainer.strategy.reduce_boolean_decision(stop_requested(), all=False):
            return
        trainer.save_checkpoint(self._checkpoint)
        for logger in trainer.loggers:
            logger.save()
        # The first rank to exit may end the others.
        trainer.strategy.barrier()
        raise Stopped(f"stopped after step {trainer.global_step}, saved in {self._checkpoint}")

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Stop within a validation, which may take longer than the time left.

        All ranks stop at the same batch, because they validate equally many.

        Raises:
            Stopped: training resumes from the checkpoint before the validation.
        """
        if trainer.strategy.reduce_boolean_decision(stop_requested(), all=False):
            trainer.strategy.barrier()
            raise Stopped(f"stopped in the validation after step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop at once on later signals: what follows is repeated from the last checkpoint."""
        listen()


class Confusion(Callback):
    """Logs the confusion matrix of the degradations to W&B after each validation."""

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the matrix; the module logs the scalars."""
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
    """A validation sample to show."""

    key: str
    degraded: Pixels
    restored: Pixels
    clean: Pixels


class Samples(Callback):
    """Shows a few fixed validation samples: a picture in a folder, a table on W&B.

    They are centre crops of the first sample of each task that the first rank validates.
    """

    def __init__(self, folder: Path) -> None:
        """Write the picture to `folder`."""
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
        """Write and log the samples."""
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

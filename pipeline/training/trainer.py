"""What both training stages share: the Trainer, its loggers, and resuming an interrupted run."""

from __future__ import annotations

import atexit
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger

from datamodules.files import remove_partial
from modules.inference.device import is_fast_in_bfloat16
from pipeline.config import Config
from pipeline.distributed import current_rank, device_of
from pipeline.preemption import Stopped
from pipeline.tracking import CSV_LOG, TRACKER
from pipeline.training.callbacks import GracefulStop, GradientClipping, Throughput
from pipeline.training.checkpoints import (
    LAST,
    AtomicCheckpointIO,
    checkpoint_callbacks,
    load_best,
    newest_checkpoint,
)
from pipeline.training.optim import warmup_cosine
from pipeline.training.sections import TrainerConfig, TrainingConfig, check_batch

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"


class WandbMetrics(Logger):
    """Logs the same rows as the CSV files to the stage's run on W&B."""

    @property
    def name(self) -> str:
        """Name of the folder, as Lightning asks for one."""
        return CSV_LOG

    @property
    def version(self) -> str:
        """Empty, so that the progress bar shows the version of the CSV files."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row."""
        TRACKER(lambda run: run.log(dict(metrics) | {"step": step}))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run already has the whole configuration."""


def loggers(folder: Path) -> list[Logger]:
    """Loggers of a training stage that keeps its files in `folder`."""
    csv = CSVLogger(folder, name=CSV_LOG)
    return [csv, WandbMetrics()] if TRACKER.active else [csv]


def fit(
    config: Config,
    stage: TrainingConfig,
    folder: Path,
    module: LightningModule,
    data: LightningDataModule,
    monitor: str,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Train to the stage's last step, resuming from its last checkpoint if there is one.

    `monitor` is the validation metric by which the best checkpoint is chosen. Afterwards the module
    of the first process has the weights to keep, as `stage.final_weights` says: the last, or the
    best.
    """
    # Both are intended: the sampler is infinite, and the number of workers is configured.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`__len__`.*")
    checkpoints, settings = folder / CHECKPOINTS, config[TrainerConfig]
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        precision=precision_of(config),  # type: ignore[arg-type]
        max_steps=stage.max_steps,
        accumulate_grad_batches=stage.accumulate_grad_batches,
        val_check_interval=min(stage.val_every_n_steps, stage.max_steps)
        * stage.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every_n_steps,
        logger=loggers(folder),
        callbacks=[
            GradientClipping(stage.gradient_clip_val),
            *checkpoint_callbacks(checkpoints, stage.val_every_n_steps, monitor),
            LearningRateMonitor(),
            TQDMProgressBar(10),
            Throughput(),
            *callbacks,
            GracefulStop(checkpoints / f"{LAST}.ckpt"),
        ],
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
    if trainer.is_global_zero:
        remove_partial(checkpoints)
    if last := newest_checkpoint(checkpoints):
        log.info("resuming from %s", last)
    _train(trainer, module, data, last)
    if stage.final_weights == "best" and trainer.is_global_zero:
        load_best(checkpoints, module)
    return trainer


def _train(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, last: Path | None
) -> None:
    """Train; on failure, the processes that Lightning started end with this one."""
    atexit.register(_end_ranks, trainer)  # at exit, after the error was reported
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error
    except Stopped:
        atexit.unregister(_end_ranks)
        raise
    atexit.unregister(_end_ranks)


def _end_ranks(trainer: Trainer) -> None:
    """Kill the processes that Lightning started, which would wait for this one forever."""
    for process in getattr(trainer.strategy.launcher, "procs", ()):
        process.kill()


def check_processes(config: Config, section: type[TrainingConfig]) -> None:
    """Check that a stage's batch can be shared out to the processes, where their number is known.

    Raises:
        ConfigError: it cannot.
    """
    trainer = config[TrainerConfig]
    devices = trainer.devices
    if devices in ("auto", -1, "-1") and device_of(config).type == "cuda":
        devices = torch.cuda.device_count()
    asked = devices * trainer.num_nodes if isinstance(devices, int) else 1
    check_batch(config, section, max(1, asked, current_rank().world))


def precision_of(config: Config) -> str:
    """Lightning's name; `auto` is bf16-mixed where the device is fast in it."""
    precision = config[TrainerConfig].precision
    if precision != "auto":
        return precision
    return "bf16-mixed" if is_fast_in_bfloat16(device_of(config)) else "32-true"


def lr_schedule_of(stage: TrainingConfig) -> Callable[[int], float]:
    """The learning rate schedule of a stage."""
    return partial(
        warmup_cosine, warmup=stage.warmup_steps, total=stage.max_steps, floor=stage.min_lr_ratio
    )

"""Stage (a): train the image controller of DA-CLIP."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.augment import whole_image
from datamodules.batch import collate_padded
from datamodules.datamodule import RestorationDataModule
from modules.clip.daclip import build_daclip
from modules.clip.encoder import DaClipEncoder
from pipeline.chain import SHARDS, WEIGHTS, caption_file
from pipeline.config import Config, ConfigError, build
from pipeline.models.store import save_controller, start_from
from pipeline.training.callbacks import Confusion
from pipeline.training.daclip_module import DEGRADATION_TARGETS, DaClipModule
from pipeline.training.trainer import check_processes, fit, lr_schedule_of


def run(config: Config, folder: Path) -> None:
    """Train, and save the network."""
    stage = config.controller
    data = RestorationDataModule(
        shards=SHARDS.folder(config),
        captions=caption_file(config),
        augment=whole_image,
        with_clean=False,
        collate=collate_padded,
        batch_size=stage.batch_size,
        val_batch_size=config.evaluate.batch_size,
        val_per_task=stage.val_images_per_task,
        num_workers=config.num_workers,
        seed=config.seed,
        shares=config.data.task_weights,
        max_skipped_fraction=config.data.max_skipped_fraction,
        jitter=stage.color_jitter,
    )
    torch.manual_seed(config.seed)
    daclip = build_daclip(
        config.clip.architecture, None if stage.init_from else config.clip.weights
    )
    if stage.init_from:
        start_from(Path(stage.init_from), daclip)
    if config.clip.train:
        daclip.unfreeze_clip()
    if config.trainer.compile:
        daclip.compile()
    words = data.words()
    if unseen := sorted(set(data.words("val")) - set(words)):
        raise ValueError(
            f"validation has {', '.join(unseen)}, of which there is no training sample; make "
            "shards that have both, or neither"
        )
    module = DaClipModule(
        daclip, stage, words, build(stage.optimizer), lr_schedule_of(stage), config.seed
    )
    trainer = fit(config, stage, folder, module, data, "degradation_accuracy", [Confusion()])
    if trainer.is_global_zero:
        controller = DaClipEncoder(daclip, words, stage.crops_per_side)
        save_controller(folder / WEIGHTS, controller, config.clip.architecture)


def check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigError: there are no such targets, the CLIP cannot be made, or the batch cannot be
            shared out.
    """
    check_processes(config, "controller")
    targets = config.controller.degradation_targets
    if targets not in DEGRADATION_TARGETS:
        known = ", ".join(DEGRADATION_TARGETS)
        raise ConfigError(f"controller.degradation_targets={targets}; choose one of: {known}")
    try:
        with torch.device("meta"):
            build_daclip(config.clip.architecture)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"clip.architecture: {error}") from error

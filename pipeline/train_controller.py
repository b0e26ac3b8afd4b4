"""Stage (a): train the image controller of DA-CLIP."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.datasets import collate_padded
from datamodules.mixed import MixedData
from datamodules.views import whole_image
from modules.controller_module import DEGRADATION_TARGETS, ControllerModule
from modules.daclip import build_daclip
from modules.restorer import Controller
from pipeline.callbacks import Confusion
from pipeline.config import Config, ConfigError, build
from pipeline.models import save_controller, start_from
from pipeline.stages import SHARDS, WEIGHTS, caption_file
from pipeline.training import check_processes, fit, schedule_of


def run(config: Config, folder: Path) -> None:
    """Train, and save the network."""
    stage = config.controller
    data = MixedData(
        shards=SHARDS.folder(config),
        captions=caption_file(config),
        augment=whole_image,
        with_clean=False,
        collate=collate_padded,
        batch_size=stage.batch_size,
        val_batch_size=config.evaluate.batch_size,
        val_per_task=stage.val_per_task,
        workers=config.workers,
        seed=config.seed,
        shares=config.data.shares,
        max_skipped_share=config.data.max_skipped_share,
        jitter=stage.jitter,
    )
    torch.manual_seed(config.seed)
    daclip = build_daclip(config.clip.architecture, None if stage.weights else config.clip.weights)
    if stage.weights:
        start_from(Path(stage.weights), daclip)
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
    module = ControllerModule(
        daclip,
        words,
        build(stage.optimizer),
        schedule_of(stage),
        stage.degradation_targets,
        (stage.view_scale[0], stage.view_scale[1]),
        config.seed,
        stage.windows,
    )
    trainer = fit(config, stage, folder, module, data, "degradation_accuracy", [Confusion()])
    if trainer.is_global_zero:
        controller = Controller(daclip, words, stage.windows)
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

"""Stage (a): train the image controller of DA-CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import Config, ConfigError, Section, build
from pipeline.sections import DataConfig, check_sampler
from pipeline.stage import Stage
from pipeline.stages import captions, shards
from pipeline.training.sections import ControllerConfig, TrainerConfig

WEIGHTS = "model.safetensors"


class ClipConfig(Section, name="clip"):
    """The CLIP under the controller."""

    architecture: str | dict[str, Any]
    weights: str | None
    train: bool


def controller_weights(config: Config) -> Path:
    """What the stage makes."""
    return STAGE.folder(config) / WEIGHTS


def _check(config: Config) -> None:
    """Refuse a CLIP that cannot be made, and a batch that cannot be shared out."""
    import torch

    from modules.clip.daclip import build_daclip
    from pipeline.training.trainer import check_processes

    check_processes(config, ControllerConfig)
    check_sampler(config)
    try:
        with torch.device("meta"):
            build_daclip(config[ClipConfig].architecture)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"clip.architecture: {error}") from error


def _run(config: Config, folder: Path) -> None:
    """Train, and save the network."""
    import torch

    from datamodules.augment import whole_image
    from datamodules.batch import collate_padded
    from datamodules.datamodule import Examples, Loading, Mixing, RestorationDataModule
    from modules.clip.daclip import build_daclip
    from modules.clip.encoder import DaClipEncoder
    from pipeline.models.store import save_controller, start_from
    from pipeline.training.callbacks import Confusion
    from pipeline.training.daclip_module import DaClipModule
    from pipeline.training.trainer import fit, lr_schedule_of

    settings, clip = config[ControllerConfig], config[ClipConfig]
    data = RestorationDataModule(
        shards.STAGE.folder(config),
        Examples(
            whole_image,
            with_clean=False,
            captions=captions.caption_file(config),
            color_jitter=settings.color_jitter,
        ),
        Loading(
            settings.batch_size,
            config[DataConfig].val_batch_size,
            settings.val_images_per_task,
            config.num_workers,
            collate_padded,
        ),
        Mixing(
            config.seed,
            config[DataConfig].task_weights,
            config[DataConfig].max_skipped_fraction,
        ),
    )
    torch.manual_seed(config.seed)
    daclip = build_daclip(clip.architecture, None if settings.init_from else clip.weights)
    if settings.init_from:
        start_from(Path(settings.init_from), daclip)
    if clip.train:
        daclip.unfreeze_clip()
    if config[TrainerConfig].compile:
        daclip.compile()
    words = data.words()
    if unseen := sorted(set(data.words("val")) - set(words)):
        raise ValueError(
            f"validation has {', '.join(unseen)}, of which there is no training sample; make "
            "shards that have both, or neither"
        )
    module = DaClipModule(
        daclip,
        settings,
        words,
        build(settings.optimizer, _partial_=True),
        lr_schedule_of(settings),
        config.seed,
    )
    trainer = fit(config, settings, folder, module, data, "degradation_accuracy", [Confusion()])
    if trainer.is_global_zero:
        encoder = DaClipEncoder(daclip, words, settings.crops_per_side)
        save_controller(folder / WEIGHTS, encoder, clip.architecture)


def _inputs(config: Config) -> list[Path]:
    clip, start = config[ClipConfig].weights, config[ControllerConfig].init_from
    named = start or (clip if clip and Path(clip).is_file() else None)
    made = [shards.shard_index(config), captions.caption_file(config)]
    return [*made, *([Path(named)] if named else [])]


STAGE = Stage(
    name="controller",
    command="train-controller",
    sections=["clip", "controller", "data.task_weights"],
    outputs=[WEIGHTS],
    needs=lambda config: [shards.STAGE, captions.STAGE],
    inputs=_inputs,
    check=_check,
    run=_run,
    parallel=True,
)

"""Stage (b): train the diffusion restorer under the frozen DA-CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from pipeline.config import Config, ConfigError, Section, build
from pipeline.sections import (
    DataConfig,
    SamplerConfig,
    TrainerConfig,
    TrainingConfig,
    check_sampler,
)
from pipeline.stage import Stage
from pipeline.stages import shards, train_controller

if TYPE_CHECKING:
    from modules.inference.restore import Sampling

WEIGHTS = train_controller.WEIGHTS


class ProcessConfig(Section, name="process"):
    """The diffusion process, as `make_noise_schedule` takes it."""

    noise_schedule: str
    num_timesteps: int
    lambda_: float
    eps: float


class RestorerConfig(TrainingConfig, name="restorer"):
    """Stage (b)."""

    patch_size: int = Field(ge=1)
    context_size: int | None
    gradient_checkpointing: bool
    prediction_type: str
    loss: str
    timestep_power: float = Field(ge=0)
    text_prompt_prob: float = Field(ge=0, le=1)
    swapped_prompt_prob: float = Field(ge=0, le=1)
    ema_decay: float = Field(ge=0, le=1)
    ema_update_every: int = Field(ge=1)
    val_num_steps: int = Field(ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse settings that contradict each other."""
        if self.context_size is not None and self.context_size < self.patch_size:
            raise ValueError(
                f"restorer.context_size={self.context_size} is smaller than "
                f"restorer.patch_size={self.patch_size}, which is cropped from it"
            )
        if (total := self.text_prompt_prob + self.swapped_prompt_prob) > 1:
            raise ValueError(
                "restorer.text_prompt_prob and restorer.swapped_prompt_prob are probabilities that "
                f"sum to at most 1, got {total:g}"
            )
        return self


def restorer_weights(config: Config) -> Path:
    """What the stage makes."""
    return STAGE.folder(config) / WEIGHTS


def _check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigError: the network, its prediction type, its loss, the process or the sampler cannot
            be made, validation takes more steps than there are timesteps, or the batch cannot be
            shared out.
    """
    import torch

    from modules.diffusion.losses import find_loss
    from modules.diffusion.prediction import prediction_type
    from modules.diffusion.schedule import make_noise_schedule
    from pipeline.models.store import build_network
    from pipeline.training.trainer import check_processes

    check_processes(config, RestorerConfig)
    check_sampler(config)
    settings = config[RestorerConfig]
    try:
        find_loss(settings.loss)
        prediction_type(settings.prediction_type)
        T = make_noise_schedule(**config[ProcessConfig].model_dump()).T
        sampling = _validation_sampling(config)
        with torch.device("meta"):
            build_network(config.network)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"stage (b) cannot be trained with these settings: {error}") from error
    if sampling.num_steps > T:
        raise ConfigError(
            f"validation takes {sampling.num_steps} network calls an image, the lower of "
            f"restorer.val_num_steps and sampler.num_steps; with process.num_timesteps={T} there "
            f"can be {T} at most"
        )


def _run(config: Config, folder: Path) -> None:
    """Train, and save the averaged network."""
    import torch

    from datamodules.augment import RandomPatch
    from datamodules.batch import collate
    from datamodules.datamodule import RestorationDataModule
    from modules.diffusion.prediction import prediction_type
    from modules.diffusion.schedule import make_noise_schedule
    from modules.inference.restore import Denoiser
    from modules.networks.unet import ConditionalUNet
    from pipeline.evaluation.perceptual import training_scores
    from pipeline.models.store import build_network, load_controller, save_restorer, start_from
    from pipeline.training.callbacks import EmaCallback, Samples
    from pipeline.training.restorer_module import RestorerModule
    from pipeline.training.trainer import fit, lr_schedule_of

    settings = config[RestorerConfig]
    controller = train_controller.controller_weights(config)
    data = RestorationDataModule(
        shards=shards.STAGE.folder(config),
        captions=None,
        augment=RandomPatch(settings.context_size or settings.patch_size),
        with_clean=True,
        collate=collate,
        batch_size=settings.batch_size,
        val_batch_size=config[DataConfig].val_batch_size,
        val_per_task=settings.val_images_per_task,
        num_workers=config.num_workers,
        seed=config.seed,
        shares=config[DataConfig].task_weights,
        max_skipped_fraction=config[DataConfig].max_skipped_fraction,
        jitter=settings.color_jitter,
    )
    torch.manual_seed(config.seed)
    schedule = make_noise_schedule(**config[ProcessConfig].model_dump())
    network = build_network(config.network)
    if settings.init_from:
        start_from(Path(settings.init_from), network)
    if isinstance(network, ConditionalUNet):
        network.recompute = settings.gradient_checkpointing
    if config[TrainerConfig].compile:
        network.compile()
    module = RestorerModule(
        Denoiser(network, schedule, prediction_type(settings.prediction_type)),
        load_controller(controller),
        settings.loss,
        build(settings.optimizer),
        lr_schedule_of(settings),
        _validation_sampling(config),
        training_scores(),
        data.words("val"),
        config.seed,
        settings.timestep_power,
        settings.patch_size if settings.context_size else None,
        (settings.text_prompt_prob, settings.swapped_prompt_prob),
    )
    average = EmaCallback(settings.ema_decay, settings.ema_update_every)
    trainer = fit(config, settings, folder, module, data, "val_psnr", [average, Samples(folder)])
    if trainer.is_global_zero:
        about = {
            "network": config.network,
            "prediction_type": settings.prediction_type,
            "process": config[ProcessConfig].model_dump(),
        }
        save_restorer(folder / WEIGHTS, network, about, controller)


def _validation_sampling(config: Config) -> Sampling:
    from modules.inference.restore import make_sampling

    sampler = config[SamplerConfig]
    steps = min(config[RestorerConfig].val_num_steps, sampler.num_steps)
    return make_sampling(**sampler.model_dump() | {"num_steps": steps})


def _inputs(config: Config) -> list[Path]:
    start = config[RestorerConfig].init_from
    made = [shards.shard_index(config), train_controller.controller_weights(config)]
    return [*made, *([Path(start)] if start else [])]


STAGE = Stage(
    name="restorer",
    command="train-restorer",
    sections=["process", "network", "restorer", "data.task_weights"],
    outputs=[WEIGHTS],
    needs=lambda config: [shards.STAGE, train_controller.STAGE],
    inputs=_inputs,
    check=_check,
    run=_run,
    parallel=True,
)

"""Stage (b): train the diffusion restorer under the frozen DA-CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config, ConfigError, Section, build
from pipeline.sections import DataConfig, SamplerConfig, check_sampler
from pipeline.stage import Stage
from pipeline.stages import shards, train_controller
from pipeline.training.sections import RestorerConfig, TrainerConfig

if TYPE_CHECKING:
    from torch import nn

    from modules.inference.restore import Sampling

WEIGHTS = train_controller.WEIGHTS


class ProcessConfig(Section, name="process"):
    """The diffusion process, as `make_noise_schedule` takes it."""

    noise_schedule: str
    num_timesteps: int
    lambda_: float
    eps: float


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

    from modules.diffusion.losses import LOSSES
    from modules.diffusion.prediction import PREDICTION_TYPES
    from modules.diffusion.schedule import make_noise_schedule
    from modules.networks import set_gradient_checkpointing
    from pipeline.training.trainer import check_processes

    check_processes(config, RestorerConfig)
    check_sampler(config)
    settings = config[RestorerConfig]
    try:
        LOSSES.find(settings.loss)
        PREDICTION_TYPES.find(settings.prediction_type)
        T = make_noise_schedule(**config[ProcessConfig].model_dump()).T
        sampling = _validation_sampling(config)
        with torch.device("meta"):
            set_gradient_checkpointing(_network(config), settings.gradient_checkpointing)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"stage (b) cannot be trained with these settings: {error}") from error
    if sampling.num_steps > T:
        raise ConfigError(
            f"validation takes {sampling.num_steps} steps an image, the lower of "
            f"restorer.val_num_steps and sampler.num_steps; with process.num_timesteps={T} there "
            f"can be {T} at most"
        )


def _run(config: Config, folder: Path) -> None:
    """Train, and save the averaged network."""
    import torch

    from datamodules.augment import RandomPatch
    from datamodules.datamodule import Examples, Loading, Mixing, RestorationDataModule
    from modules.diffusion.prediction import PREDICTION_TYPES
    from modules.diffusion.schedule import make_noise_schedule
    from modules.inference.restore import Denoiser
    from modules.networks import set_gradient_checkpointing
    from pipeline.evaluation.scoring import validation_metrics
    from pipeline.models.store import load_controller, save_restorer, start_from
    from pipeline.training.callbacks import EmaCallback, Samples
    from pipeline.training.restorer_module import RestorerModule
    from pipeline.training.trainer import fit, lr_schedule_of

    settings = config[RestorerConfig]
    controller = train_controller.controller_weights(config)
    data = RestorationDataModule(
        shards.STAGE.folder(config),
        Examples(
            RandomPatch(settings.context_size or settings.patch_size),
            with_clean=True,
            color_jitter=settings.color_jitter,
        ),
        Loading(
            settings.batch_size,
            config[DataConfig].val_batch_size,
            settings.val_images_per_task,
            config.num_workers,
        ),
        Mixing(
            config.seed,
            config[DataConfig].task_weights,
            config[DataConfig].max_skipped_fraction,
        ),
    )
    torch.manual_seed(config.seed)
    schedule = make_noise_schedule(**config[ProcessConfig].model_dump())
    network = _network(config)
    if settings.init_from:
        start_from(Path(settings.init_from), network)
    set_gradient_checkpointing(network, settings.gradient_checkpointing)
    if config[TrainerConfig].compile:
        network.compile()
    module = RestorerModule(
        Denoiser(network, schedule, PREDICTION_TYPES.find(settings.prediction_type)),
        load_controller(controller),
        settings,
        build(settings.optimizer, _partial_=True),
        lr_schedule_of(settings),
        _validation_sampling(config),
        validation_metrics(torch.device("cpu")),
        data.words("val"),
        config.seed,
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


def _network(config: Config) -> nn.Module:
    """The network to train; the user's settings may name a class of an installed package."""
    from modules.networks import build_network

    return build_network(config.network, allow=config.network_classes)


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

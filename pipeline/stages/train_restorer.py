"""Stage (b): train the diffusion restorer under the frozen DA-CLIP."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from datamodules.augment import RandomPatch
from datamodules.batch import collate
from datamodules.datamodule import RestorationDataModule
from modules.diffusion.losses import LOSSES
from modules.diffusion.prediction import PREDICTION_TYPES
from modules.diffusion.schedule import make_noise_schedule
from modules.inference.restore import Denoiser, Sampling, make_sampling
from modules.networks import build_network, set_gradient_checkpointing
from pipeline.chain import SHARDS, WEIGHTS, controller_weights
from pipeline.config import Config, ConfigError, build
from pipeline.evaluation.perceptual import training_scores
from pipeline.models.store import load_controller, save_restorer, start_from
from pipeline.training.callbacks import EmaCallback, Samples
from pipeline.training.restorer_module import RestorerModule
from pipeline.training.trainer import check_processes, fit, lr_schedule_of


def run(config: Config, folder: Path) -> None:
    """Train, and save the averaged network."""
    stage = config.restorer
    data = RestorationDataModule(
        shards=SHARDS.folder(config),
        captions=None,
        augment=RandomPatch(stage.context_size or stage.patch_size),
        with_clean=True,
        collate=collate,
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
    schedule = make_noise_schedule(**vars(config.process))
    network = _network(config)
    if stage.init_from:
        start_from(Path(stage.init_from), network)
    set_gradient_checkpointing(network, stage.gradient_checkpointing)
    if config.trainer.compile:
        network.compile()
    module = RestorerModule(
        Denoiser(network, schedule, PREDICTION_TYPES.find(stage.prediction_type)),
        load_controller(controller_weights(config)),
        stage,
        build(stage.optimizer),
        lr_schedule_of(stage),
        _validation_sampling(config),
        training_scores(),
        data.words("val"),
        config.seed,
    )
    average = EmaCallback(stage.ema_decay, stage.ema_update_every)
    trainer = fit(config, stage, folder, module, data, "val_psnr", [average, Samples(folder)])
    if trainer.is_global_zero:
        controller = controller_weights(config)
        save_restorer(folder / WEIGHTS, network, config, controller)


def check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigError: the patch is larger than what it is cut of, the network, its target, its loss
            or the SDE cannot be made, validation calls the network more often than there are
            times, or the batch cannot be shared out.
    """
    check_processes(config, "restorer")
    stage = config.restorer
    if stage.context_size is not None and stage.context_size < stage.patch_size:
        raise ConfigError(
            f"restorer.context_size={stage.context_size}: restorer.patch_size={stage.patch_size} "
            "cannot be cut of it"
        )
    try:
        LOSSES.find(stage.loss)
        PREDICTION_TYPES.find(stage.prediction_type)
        T, sampling = make_noise_schedule(**vars(config.process)).T, _validation_sampling(config)
        with torch.device("meta"):
            set_gradient_checkpointing(_network(config), stage.gradient_checkpointing)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"stage (b) cannot be trained so: {error}") from error
    if sampling.num_steps > T:
        raise ConfigError(
            f"validation takes {sampling.num_steps} steps an image, the lower of "
            f"restorer.val_num_steps and sampler.num_steps; with process.num_timesteps={T} there "
            f"can be {T} at most"
        )


def _network(config: Config) -> nn.Module:
    """The network to train; the user's settings may name a class of an installed package."""
    package = str(config.network.get("_target_", "")).partition(".")[0]
    return build_network(config.network, allow=[package] if package else [])


def _validation_sampling(config: Config) -> Sampling:
    calls = min(config.restorer.val_num_steps, config.sampler.num_steps)
    return make_sampling(**vars(config.sampler) | {"num_steps": calls})

"""Stage (b): train the diffusion restorer under the frozen DA-CLIP."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.datasets import collate
from datamodules.mixed import MixedData
from datamodules.views import RandomPatch
from modules.prediction import parameterisation
from modules.restorer import Denoiser, make_sampling
from modules.restorer_module import RestorerModule
from modules.sde import make_tables
from modules.unet import ConditionalUNet
from pipeline.callbacks import Average, Samples
from pipeline.config import Config, ConfigError, build
from pipeline.models import build_network, load_controller, save_restorer, start_from
from pipeline.perceptual import training_scores
from pipeline.stages import SHARDS, WEIGHTS, controller_weights
from pipeline.training import fit, schedule_of


def run(config: Config, folder: Path) -> None:
    """Train, and save the averaged network."""
    stage = config.restorer
    data = MixedData(
        shards=SHARDS.folder(config),
        captions=None,
        augment=RandomPatch(stage.view or stage.patch),
        with_clean=True,
        collate=collate,
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
    tables = make_tables(**vars(config.sde))
    network = build_network(stage.network)
    if stage.weights:
        start_from(Path(stage.weights), network)
    if isinstance(network, ConditionalUNet):
        network.recompute = stage.recompute
    if config.trainer.compile:
        network.compile()
    module = RestorerModule(
        Denoiser(network, tables, parameterisation(stage.target)),
        load_controller(controller_weights(config)),
        stage.loss,
        build(stage.optimizer),
        schedule_of(stage),
        make_sampling(
            **vars(config.sampling) | {"calls": min(stage.val_calls, config.sampling.calls)}
        ),
        training_scores(),
        data.words("val"),
        config.seed,
        stage.late_times,
        stage.patch if stage.view else None,
        (stage.true_words, stage.swapped),
    )
    average = Average(
        decay=stage.ema_decay, update_every_n_steps=stage.ema_every, use_buffers=False
    )
    trainer = fit(config, stage, folder, module, data, "val_psnr", [average, Samples(folder)])
    if trainer.is_global_zero:
        controller = controller_weights(config)
        save_restorer(folder / WEIGHTS, network, config.sde, stage, controller)


def check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigError: the patch is larger than what it is cut of.
    """
    view, patch = config.restorer.view, config.restorer.patch
    if view is not None and view < patch:
        raise ConfigError(f"restorer.view={view}: restorer.patch={patch} cannot be cut of it")

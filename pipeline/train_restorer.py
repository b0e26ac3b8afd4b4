"""Stage (b): train the diffusion restorer under the frozen DA-CLIP."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.datasets import collate
from datamodules.mixed import MixedData
from datamodules.views import RandomPatch
from modules.prediction import parameterisation
from modules.restorer import Denoiser, Sampling, make_sampling
from modules.restorer_module import RestorerModule, loss_of
from modules.sde import make_tables
from modules.unet import ConditionalUNet
from pipeline.callbacks import Average, Samples
from pipeline.config import Config, ConfigError, build
from pipeline.models import build_network, load_controller, save_restorer, start_from
from pipeline.perceptual import training_scores
from pipeline.stages import SHARDS, WEIGHTS, controller_weights
from pipeline.training import check_processes, fit, schedule_of


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
        _validation_sampling(config),
        training_scores(),
        data.words("val"),
        config.seed,
        stage.late_times,
        stage.patch if stage.view else None,
        (stage.true_words, stage.swapped),
    )
    average = Average(stage.ema_decay, stage.ema_every)
    trainer = fit(config, stage, folder, module, data, "val_psnr", [average, Samples(folder)])
    if trainer.is_global_zero:
        controller = controller_weights(config)
        save_restorer(folder / WEIGHTS, network, config.sde, stage, controller)


def check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigError: the patch is larger than what it is cut of, the network, its target, its loss
            or the SDE cannot be made, validation calls the network more often than there are
            times, or the batch cannot be shared out.
    """
    check_processes(config, "restorer")
    stage = config.restorer
    if stage.view is not None and stage.view < stage.patch:
        raise ConfigError(
            f"restorer.view={stage.view}: restorer.patch={stage.patch} cannot be cut of it"
        )
    try:
        loss_of(stage.loss)
        parameterisation(stage.target)
        T, sampling = make_tables(**vars(config.sde)).T, _validation_sampling(config)
        with torch.device("meta"):
            build_network(stage.network)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"stage (b) cannot be trained so: {error}") from error
    if sampling.calls > T:
        raise ConfigError(
            f"validation takes {sampling.calls} network calls an image, the lower of "
            f"restorer.val_calls and sampling.calls; with sde.T={T} there can be {T} at most"
        )


def _validation_sampling(config: Config) -> Sampling:
    calls = min(config.restorer.val_calls, config.sampling.calls)
    return make_sampling(**vars(config.sampling) | {"calls": calls})

"""A training step of either stage, both ways, from the same weights and on the same batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from datamodules.degradations import WORDS
from modules.clip.daclip import DaClip, build_daclip
from modules.clip.encoder import DaClipEncoder
from modules.clip.losses import info_nce, multi_positive
from modules.clip.preprocess import clip_preprocess, random_clip_preprocess
from modules.diffusion import sde
from modules.diffusion.losses import LOSSES
from modules.diffusion.prediction import PREDICTION_TYPES
from modules.diffusion.samplers import make_sampler
from modules.diffusion.schedule import make_noise_schedule
from modules.diffusion.timesteps import sample_timesteps
from modules.inference.restore import Denoiser, Sampling
from pipeline.config import Node, build
from pipeline.models.store import build_network
from pipeline.sections import SamplerConfig
from pipeline.stages.train_controller import ClipConfig
from pipeline.stages.train_restorer import ProcessConfig
from pipeline.training.daclip_module import DaClipModule
from pipeline.training.draws import draw_generators, draw_noise
from pipeline.training.optim import decay_groups
from pipeline.training.restorer_module import RestorerModule
from pipeline.training.sections import ControllerConfig, RestorerConfig
from tests.benchmarks.batch import make_batch
from tests.benchmarks.laps import Laps
from tests.benchmarks.plain import make_plain
from tests.benchmarks.work import SEED, Work, call_arguments, wake


class Step(NamedTuple):
    """A training step that can be repeated."""

    loss: Callable[[], Tensor]
    outputs: Callable[[], Tensor]
    """What the network makes of fixed arguments."""
    network: nn.Module
    """What trains."""
    optimizer: Optimizer

    def __call__(self, laps: Laps) -> None:
        """Take it, and tell of its parts."""
        self.optimizer.zero_grad()
        loss = self.loss()
        laps(_done("forward", loss.device))
        loss.backward()
        laps(_done("backward", loss.device))
        self.optimizer.step()
        laps(_done("optimizer", loss.device))


def make_step(work: Work, way: str) -> Step:
    """The training step of a stage: `ours` is that of its Lightning module."""
    torch.manual_seed(SEED)
    daclip = build_daclip(work.config[ClipConfig].architecture)
    wake(daclip)
    daclip.to(work.device)
    if work.kind == "controller":
        return _our_controller(work, daclip) if way == "ours" else _plain_controller(work, daclip)
    network = build_network(work.config.network)
    wake(network)
    network.to(work.device)
    if way == "ours":
        return _our_restorer(work, network, daclip)
    return _plain_restorer(work, network, daclip)


def _our_controller(work: Work, daclip: DaClip) -> Step:
    stage = work.config[ControllerConfig]
    if work.fast:
        daclip.compile()
    module = DaClipModule(
        daclip, stage, WORDS, build(stage.optimizer, _partial_=True), lambda step: 1.0, SEED
    )
    return _ours(work, module, daclip, lambda: _embeddings(work, daclip))


def _plain_controller(work: Work, daclip: DaClip) -> Step:
    stage = work.config[ControllerConfig]
    make_plain(daclip)
    batch, scale = make_batch(work), (stage.crop_scale[0], stage.crop_scale[1])
    ids = torch.tensor([WORDS.index(word) for word in batch.degradation], device=work.device)

    def texts(texts: list[str]) -> Tensor:
        return normalize(daclip.encode_text(daclip.tokenize(texts)), dim=-1)

    def loss() -> Tensor:
        generators = draw_generators(torch.device("cpu"), SEED, batch.number)
        view = random_clip_preprocess(batch.lq, daclip.image_size, scale, generators, batch.size)
        content, degradation = (normalize(x, dim=-1) for x in daclip(view))
        logit_scale = daclip.logit_scale.exp()
        pair = degradation, texts(batch.degradation), logit_scale
        identity = stage.degradation_targets == "identity"
        return info_nce(content, texts(batch.caption), logit_scale) + (
            info_nce(*pair) if identity else multi_positive(*pair, ids)
        )

    optimizer = _unfused(stage.optimizer, daclip)
    return Step(loss, lambda: _embeddings(work, daclip), daclip, optimizer)


def _our_restorer(work: Work, network: nn.Module, daclip: DaClip) -> Step:
    config, stage = work.config, work.config[RestorerConfig]
    if work.fast:
        network.compile()
    module = RestorerModule(
        Denoiser(
            network,
            make_noise_schedule(**config[ProcessConfig].model_dump()),
            PREDICTION_TYPES.find(stage.prediction_type),
        ),
        DaClipEncoder(daclip, WORDS),
        stage,
        build(stage.optimizer, _partial_=True),
        lambda step: 1.0,
        Sampling(make_sampler(config[SamplerConfig].name), num_steps=1),
        {},
        WORDS,
        SEED,
    )
    return _ours(work, module, network, lambda: _unet_outputs(work, network))


def _plain_restorer(work: Work, network: nn.Module, daclip: DaClip) -> Step:
    stage = work.config[RestorerConfig]
    make_plain(network)
    make_plain(daclip).eval().requires_grad_(False)
    schedule = make_noise_schedule(**work.config[ProcessConfig].model_dump()).to(work.device)
    batch, meaning, compare = (
        make_batch(work),
        PREDICTION_TYPES.find(stage.prediction_type),
        LOSSES.find(stage.loss),
    )

    def loss() -> Tensor:
        x_0, mu = batch.gt.float() / 255, batch.lq.float() / 255
        host, device = (
            draw_generators(torch.device(d), SEED, batch.number) for d in ("cpu", mu.device)
        )
        t = sample_timesteps(host, schedule.T).to(mu.device)
        noise = draw_noise(host if mu.device.type == "cpu" else device, mu)
        x_t = sde.diffuse(schedule, x_0, mu, t, noise)
        with torch.no_grad():
            content, degradation = daclip(clip_preprocess(mu, daclip.image_size))
        F = network(x_t, mu, t, degradation, content)
        return compare(schedule, meaning(schedule, F, x_t, mu, t), x_t, x_0, mu, t).mean()

    optimizer = _unfused(stage.optimizer, network)
    return Step(loss, lambda: _unet_outputs(work, network), network, optimizer)


def _ours(
    work: Work,
    module: DaClipModule | RestorerModule,
    network: nn.Module,
    outputs: Callable[[], Tensor],
) -> Step:
    """The module's own step, without a training loop around it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")  # that nothing is logged, as is meant
    accelerator = "cpu" if work.device == "cpu" else "gpu"
    module.trainer = Trainer(accelerator=accelerator, devices=1, max_steps=1, barebones=True)
    module.to(work.device)
    module.on_fit_start()
    batch: Any = make_batch(work)

    def loss() -> Tensor:
        with torch.autocast(work.device, torch.bfloat16, enabled=work.fast):
            return module.training_step(batch, 0)

    optimizer: Optimizer = module.configure_optimizers()["optimizer"]
    return Step(loss, outputs, network, optimizer)


def _unfused(optimizer: Node, network: nn.Module) -> Optimizer:
    plain: Any = build(optimizer | {"fused": False})
    made: Optimizer = plain(decay_groups(network.parameters()))
    return made


@torch.no_grad()
def _unet_outputs(work: Work, network: nn.Module) -> Tensor:
    outputs: Tensor = network(*call_arguments(work, network))
    return outputs


@torch.no_grad()
def _embeddings(work: Work, daclip: DaClip) -> Tensor:
    view = clip_preprocess(make_batch(work).lq, daclip.image_size)
    return torch.cat(daclip(view))


def _done(part: str, device: torch.device) -> str:
    """The name of a part that is over, once the device has finished it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return part

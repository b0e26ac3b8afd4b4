"""Stage (b) as Lightning trains it: the network learns to denoise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from datamodules.batch import Batch
from modules.clip.daclip import Embeddings
from modules.clip.encoder import DaClipEncoder
from modules.diffusion import sde
from modules.diffusion.losses import LOSSES
from modules.diffusion.timesteps import sample_timesteps
from modules.inference.restore import Denoiser, Sampling, place_model, restore
from pipeline.training.daclip_module import MakeOptimizer
from pipeline.training.draws import (
    augment_prompts,
    draw_chances,
    draw_generators,
    draw_noise,
    other_in_batch,
    random_crops,
)
from pipeline.training.group_mean import GroupMean, bucket_of, by_group, time_buckets
from pipeline.training.optim import decay_groups
from pipeline.training.sections import RestorerConfig

BUCKETS = 5
"""Parts of 1..T whose losses are logged apart."""


class RestorerModule(LightningModule):
    """Denoising at a random time, given the frozen DA-CLIP's embeddings of the degraded image."""

    def __init__(
        self,
        denoiser: Denoiser,
        encoder: DaClipEncoder,
        settings: RestorerConfig,
        make_optimizer: MakeOptimizer,
        lr_schedule: Callable[[int], float],
        sampling: Sampling,
        scores: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
        words: Sequence[str],
        seed: int,
    ) -> None:
        """Train a restorer.

        Args:
            denoiser: the network to train, and what its output means.
            encoder: a trained DA-CLIP; stays frozen.
            settings: the section of the configuration; `loss`, `timestep_power`, `patch_size`,
                `context_size`, `text_prompt_prob` and `swapped_prompt_prob` are read. Where there
                is a context size, the network trains on a random crop of what the encoder gets.
            make_optimizer: from parameter groups.
            lr_schedule: step -> share of the learning rate.
            sampling: for validation.
            scores: by name, what validation measures of restored and clean images, uint8
                `[B, 3, H, W]` on the CPU: `[B]`.
            words: the degradations of validation.
            seed: of timesteps and noise, and of validation's noise.

        Raises:
            ValueError: there is no such loss.
        """
        super().__init__()
        self.network: nn.Module = denoiser.network
        self._denoiser, self._loss = denoiser, LOSSES.find(settings.loss)
        # Frozen and no nn.Module itself: neither saved, averaged, nor wrapped for DDP.
        self._encoder, self._settings = encoder, settings
        self._make_optimizer, self._lr_schedule = make_optimizer, lr_schedule
        self._sampling, self._seed = sampling, seed
        self._scores, self._words = dict(scores), tuple(words)
        self.loss_by_time = GroupMean(BUCKETS)
        self.restored = GroupMean(len(words), len(scores))
        self.degraded = GroupMean(len(words), len(scores))

    def on_fit_start(self) -> None:
        """Bring what is no submodule to the device of the network."""
        self._encoder.to(self.device)
        self._denoiser = self._denoiser.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss at a random timestep in 1..T for each image."""
        x_0, context = batch.gt.float() / 255, batch.lq.float() / 255
        schedule, settings, mu = self._denoiser.schedule, self._settings, context
        host, device = self._generators(batch)
        # All before the encoder has work on a GPU, which would be waited for.
        chances = draw_chances(host, self.device) if self._augments else None
        if settings.context_size:
            x_0, mu = random_crops(settings.patch_size, host, x_0, mu)
        t = sample_timesteps(host, schedule.T, settings.timestep_power).to(self.device)
        embeddings = self._prompted(self._encoder.embed(context), batch, chances)
        x_t = sde.diffuse(schedule, x_0, mu, t, draw_noise(device, mu))
        prediction = self._denoiser(x_t, mu, t, embeddings)
        losses = self._loss(schedule, prediction, x_t, x_0, mu, t)
        self.log("loss", losses.mean(), prog_bar=True, sync_dist=True)
        self.loss_by_time.update(losses[:, None], bucket_of(t, schedule.T, BUCKETS))
        return losses.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Score restorations and the degraded images; return the restorations, uint8."""
        model = place_model(self._encoder, self._denoiser, self._sampling, self.device)
        restored = restore(model, batch.lq, [self._seed] * len(batch.lq))
        words = torch.tensor([self._words.index(w) for w in batch.degradation], device=self.device)
        clean = batch.gt.cpu()
        for metric, images in ((self.restored, restored), (self.degraded, batch.lq.cpu())):
            with torch.autocast("cpu", enabled=False):  # scores are exact whatever trains
                scores = [score(images, clean) for score in self._scores.values()]
            values = torch.stack(scores, dim=1).to(self.device)
            metric.update(values[batch.valid], words[batch.valid])
        return restored

    def on_validation_epoch_end(self) -> None:
        """Log the means by score and word, and those of the losses since the last validation."""
        for metric, suffix in ((self.restored, ""), (self.degraded, "_degraded")):
            for name, means in zip(self._scores, metric.compute().T, strict=True):
                key = f"val_{name}{suffix}"
                self.log(key, means[-1], prog_bar=name == "psnr", sync_dist=True)
                self.log_dict(by_group(key, self._words, means[:-1]), sync_dist=True)
            metric.reset()
        names = time_buckets(self._denoiser.schedule.T, BUCKETS)
        losses = self.loss_by_time.compute()[:-1, 0]
        self.log_dict(by_group("loss_by_time", names, losses), sync_dist=True)
        self.loss_by_time.reset()

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, its rate set every step."""
        optimizer: Optimizer = self._make_optimizer(decay_groups(self.parameters()))
        scheduler = LambdaLR(optimizer, self._lr_schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    @property
    def _augments(self) -> bool:
        return bool(self._settings.text_prompt_prob or self._settings.swapped_prompt_prob)

    def _generators(self, batch: Batch) -> tuple[list[torch.Generator], list[torch.Generator]]:
        """Of the CPU and of the device, which are the same ones on a CPU."""
        host = draw_generators(torch.device("cpu"), self._seed, batch.number)
        if self.device.type == "cpu":
            return host, host
        return host, draw_generators(self.device, self._seed, batch.number)

    def _prompted(self, embeddings: Embeddings, batch: Batch, chances: Tensor | None) -> Embeddings:
        """Embeddings whose prompts are augmented as the settings say."""
        if chances is None:
            return embeddings
        return augment_prompts(
            embeddings,
            self._encoder.prompt(batch.degradation, embeddings).degradation,
            other_in_batch(batch.number, embeddings.degradation),
            chances,
            self._settings.text_prompt_prob,
            self._settings.swapped_prompt_prob,
        )

"""Stage (b) as Lightning trains it: the network learns to lead noisy states back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from modules.clip.daclip import Embeddings
from modules.clip.encoder import DaClipEncoder
from modules.diffusion import sde
from modules.diffusion.losses import find_loss
from modules.diffusion.prediction import from_epsilon
from modules.diffusion.timesteps import sample_timesteps
from modules.inference.restore import Denoiser, Sampling, restore
from modules.metrics.group_mean import GroupMean, bucket_of, by_group, time_buckets
from modules.metrics.scores import Score
from pipeline.training.daclip_module import MakeOptimizer, TrainingBatch
from pipeline.training.draws import draw_generators, draw_noise, other_in_batch, random_patches
from pipeline.training.optim import decay_groups

BUCKETS = 5
"""Parts of 1..T whose losses are told apart."""


class RestorerModule(LightningModule):
    """Denoising at a random time, given what the frozen DA-CLIP sees in the degraded image."""

    def __init__(
        self,
        denoiser: Denoiser,
        controller: DaClipEncoder,
        loss: str,
        make_optimizer: MakeOptimizer,
        lr_schedule: Callable[[int], float],
        sampling: Sampling,
        scores: Mapping[str, Score],
        words: Sequence[str],
        seed: int,
        late_times: float = 0,
        patch: int | None = None,
        told: tuple[float, float] = (0, 0),
    ) -> None:
        """Train a restorer.

        Args:
            denoiser: the network to train, and what its output means.
            controller: trained; stays frozen.
            loss: a name in LOSSES.
            make_optimizer: from parameter groups.
            lr_schedule: step -> share of the learning rate.
            sampling: for validation.
            scores: by name, what validation measures; they see images on the CPU.
            words: the degradations of validation.
            seed: of times and noise.
            late_times: 0 draws all times alike, as published. More draws late ones more often,
                where the clean image is far: what few network calls depend on.
            patch: side of the square, cut at random of what the controller sees of an image, that
                the network trains on; None for all of it.
            told: shares of the images, at random, of which the restorer is told the text of the
                true word, and the degradation of another image of the batch, in place of what is
                seen: so it learns to take texts, and to look for itself where the controller errs.

        Raises:
            ValueError: there is no such loss, `late_times` is negative, or `told` are no shares.
        """
        super().__init__()
        if late_times < 0:
            raise ValueError(f"restorer.timestep_power={late_times}; give 0 or more")
        if min(told) < 0 or sum(told) > 1:
            raise ValueError(
                f"restorer.text_prompt_prob={told[0]} and restorer.swapped_prompt_prob={told[1]}; "
                "give shares of 0 "
                "or more that sum to 1 at most"
            )
        self._late_times, self._patch, self._told = late_times, patch, told
        self.network: nn.Module = denoiser.network
        self._denoiser, self._loss = denoiser, find_loss(loss)
        # Frozen and no nn.Module itself: neither saved, averaged, nor wrapped for DDP.
        self._controller = controller
        self._make_optimizer, self._lr_schedule = make_optimizer, lr_schedule
        self._sampling, self._seed = sampling, seed
        self._scores, self._words = dict(scores), tuple(words)
        self.loss_by_time = GroupMean(BUCKETS)
        self.restored = GroupMean(len(words), len(scores))
        self.degraded = GroupMean(len(words), len(scores))

    def on_fit_start(self) -> None:
        """Bring what is no submodule to the device of the network."""
        self._controller.to(self.device)
        self._denoiser = self._denoiser.to(self.device)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Loss at a random time in 1..T for each image."""
        x_0, mu = batch.gt.float() / 255, batch.lq.float() / 255
        schedule = self._denoiser.schedule
        few = of_noise = draw_generators(torch.device("cpu"), self._seed, batch.number)
        if self.device.type != "cpu":
            of_noise = draw_generators(self.device, self._seed, batch.number)
        whole, chance = mu, None
        # All before the controller has work on a GPU, which would be waited for.
        if any(self._told):
            chance = torch.stack([torch.rand((), generator=g) for g in few]).to(self.device)
        if self._patch:
            x_0, mu = random_patches(self._patch, few, x_0, mu)
        t = sample_timesteps(few, schedule.T, self._late_times).to(self.device)
        embeddings = self._controller.embed(whole)
        if chance is not None:
            embeddings = self._tell_some(chance, batch, embeddings)
        x_t = sde.diffuse(schedule, x_0, mu, t, draw_noise(of_noise, mu))
        predicted = self._denoiser(x_t, mu, t, embeddings)
        losses = self._loss(schedule, predicted, x_t, x_0, mu, t)
        loss = losses.mean()
        self.log("loss", loss, prog_bar=True, sync_dist=True)
        self.loss_by_time.update(losses[:, None], bucket_of(t, schedule.T, BUCKETS))
        return loss

    def validation_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Score restorations and, beside them, the degraded images; return the restorations."""
        clean, degraded = batch.gt.float() / 255, batch.lq.float() / 255
        seeds = [self._seed] * len(degraded)
        exact: AbstractContextManager[None] = nullcontext()
        if self._denoiser.prediction_type is from_epsilon:  # as in use: its errors grow
            exact = torch.autocast(self.device.type, enabled=False)
        with exact:
            embeddings = self._controller.embed(degraded)
            restored = restore(self._denoiser, embeddings, degraded, self._sampling, seeds)
        words = torch.tensor([self._words.index(w) for w in batch.degradation], device=self.device)
        clean = clean.cpu()
        for metric, images in ((self.restored, restored.cpu()), (self.degraded, degraded.cpu())):
            with torch.autocast("cpu", enabled=False):  # scores are exact whatever trains
                scores = [score(images, clean).float() for score in self._scores.values()]
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

    def _tell_some(self, chance: Tensor, batch: TrainingBatch, seen: Embeddings) -> Embeddings:
        """True words, or what another image shows, for a share of the images, by chance `[B]`."""
        true, swapped = self._told
        texts = self._controller.tell(batch.degradation, seen).degradation
        others = other_in_batch(batch.number, seen.degradation)
        told = torch.where((chance < true)[:, None], texts, seen.degradation)
        swap = (chance >= true) & (chance < true + swapped)
        return seen._replace(degradation=torch.where(swap[:, None], others, told))

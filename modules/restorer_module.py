"""Stage (b) as Lightning trains it: the network learns to lead noisy states back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from torchmetrics.functional.image import peak_signal_noise_ratio

from modules import sde
from modules.controller_module import MakeOptimizer, TrainingBatch
from modules.optim import decay_groups
from modules.prediction import Prediction
from modules.randomness import step_generator
from modules.restorer import Controller, Denoiser, Sampling, restore
from modules.sde import Tables

Loss = Callable[[Tables, Prediction, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(tables, prediction, x_t, x_0, mu, t) -> scalar."""


def matching(
    tables: Tables, predicted: Prediction, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Tensor
) -> Tensor:
    """L1 to the optimum reverse step, as published."""
    return sde.matching_loss(tables, x_t, x_0, mu, predicted.noise, t)


def data(
    tables: Tables, predicted: Prediction, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Tensor
) -> Tensor:
    """L1 to the clean image."""
    return (predicted.x_0 - x_0).abs().mean()


LOSSES: dict[str, Loss] = {"matching": matching, "data": data}


class RestorerModule(LightningModule):
    """Denoising at a random time, given what the frozen DA-CLIP sees in the degraded image."""

    def __init__(
        self,
        denoiser: Denoiser,
        controller: Controller,
        loss: str,
        make_optimizer: MakeOptimizer,
        schedule: Callable[[int], float],
        sampling: Sampling,
        seed: int,
    ) -> None:
        """Train a restorer.

        Args:
            denoiser: the network to train, and what its output means.
            controller: trained; stays frozen.
            loss: a name in LOSSES.
            make_optimizer: from parameter groups.
            schedule: step -> share of the learning rate.
            sampling: for validation.
            seed: of times and noise.

        Raises:
            ValueError: there is no such loss.
        """
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"restorer.loss={loss!r}; choose one of: {', '.join(LOSSES)}")
        self.network: nn.Module = denoiser.network
        self._denoiser, self._loss = denoiser, LOSSES[loss]
        # Frozen and no nn.Module itself: neither saved, averaged, nor wrapped for DDP.
        self._controller = controller
        self._make_optimizer, self._schedule = make_optimizer, schedule
        self._sampling, self._seed = sampling, seed
        self.psnr, self.psnr_degraded = MeanMetric(), MeanMetric()

    def on_fit_start(self) -> None:
        """Bring what is no submodule to the device of the network."""
        self._controller.to(self.device)
        self._denoiser = self._denoiser.to(self.device)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Loss at a uniformly random time in 1..T for each image."""
        generator = step_generator(self.device, self._seed, self.global_step, self.global_rank)
        x_0, mu = batch.gt.float() / 255, batch.lq.float() / 255
        tables = self._denoiser.tables
        t = torch.randint(1, tables.T + 1, (len(mu),), generator=generator, device=self.device)
        noise = torch.randn(mu.shape, generator=generator, device=self.device)
        x_t = sde.diffuse(tables, x_0, mu, t, noise)
        predicted = self._denoiser(x_t, mu, t, self._controller.embed(mu))
        loss = self._loss(tables, predicted, x_t, x_0, mu, t)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: TrainingBatch, batch_idx: int) -> None:
        """PSNR of restorations, beside that of the degraded images."""
        clean, degraded = batch.gt.float() / 255, batch.lq.float() / 255
        embeddings = self._controller.embed(degraded)
        seeds = [self._seed] * len(degraded)
        restored = restore(self._denoiser, embeddings, degraded, self._sampling, seeds)
        self.psnr.update(_psnr(restored, clean)[batch.valid])
        self.psnr_degraded.update(_psnr(degraded, clean)[batch.valid])
        metrics = {"val_psnr": self.psnr, "val_psnr_degraded": self.psnr_degraded}
        self.log_dict(metrics, prog_bar=True, batch_size=len(clean))

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, its rate set every step."""
        optimizer: Optimizer = self._make_optimizer(decay_groups(self.parameters()))
        scheduler = LambdaLR(optimizer, self._schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _psnr(images: Tensor, clean: Tensor) -> Tensor:
    """PSNR of each image `[B]` in dB, for values in [0, 1]."""
    return peak_signal_noise_ratio(images, clean, (0.0, 1.0), reduction="none", dim=(1, 2, 3))

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

from modules import sde
from modules.contrastive import gather
from modules.controller_module import MakeOptimizer, TrainingBatch
from modules.daclip import Embeddings
from modules.group_mean import GroupMean, bucket_of, by_group, time_buckets
from modules.optim import decay_groups
from modules.prediction import Prediction, from_noise
from modules.randomness import draw_generators
from modules.restorer import Controller, Denoiser, Sampling, restore
from modules.scores import Score
from modules.sde import Tables

BUCKETS = 5
"""Parts of 1..T whose losses are told apart."""

Loss = Callable[[Tables, Prediction, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(tables, prediction, x_t, x_0, mu, t) -> the loss of each image, `[B]`."""


def matching(
    tables: Tables, predicted: Prediction, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Tensor
) -> Tensor:
    """L1 to the optimum reverse step, as published."""
    return sde.matching_loss(tables, x_t, x_0, mu, predicted.noise, t)


def data(
    tables: Tables, predicted: Prediction, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Tensor
) -> Tensor:
    """L1 to the clean image."""
    return (predicted.x_0 - x_0).abs().flatten(1).mean(dim=1)


LOSSES: dict[str, Loss] = {"matching": matching, "data": data}


def loss_of(name: str) -> Loss:
    """Look a loss up by its configuration name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; choose one of: {', '.join(LOSSES)}")
    return LOSSES[name]


def draw_times(generators: Sequence[torch.Generator], T: int, late_times: float = 0) -> Tensor:
    """A time in 1..T of each image, `[B]`, drawn by its generator, a CPU's, on the CPU.

    The density of times rises as t^late_times: t = ceil(T u^(1 / (1 + late_times))), u uniform.
    """
    if not late_times:
        return torch.stack([torch.randint(1, T + 1, (), generator=g) for g in generators])
    draws = [torch.rand((), generator=g, dtype=torch.float64) for g in generators]
    return (T * torch.stack(draws) ** (1 / (1 + late_times))).ceil().long().clamp(1, T)


def draw_noise(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Normal noise for each image of a batch `[B, ...]` by its generator, of the images' device."""
    noise = torch.empty_like(like)
    for generator, into in zip(generators, noise, strict=True):
        into.normal_(generator=generator)
    return noise


def cut_patches(
    side: int, generators: Sequence[torch.Generator], *images: Tensor
) -> tuple[Tensor, ...]:
    """A square of each image, `[B, C, side, side]`, at the same random place in all of `images`.

    Args:
        side: of the squares, at most that of the images.
        generators: one for each entry of the batch, of the CPU: a GPU would be waited for.
        images: `[B, C, H, W]` each, all of one size.
    """
    height, width = images[0].shape[2:]
    places = []
    for generator in generators:
        u, v = torch.rand(2, generator=generator).tolist()
        places.append((int(u * (height - side + 1)), int(v * (width - side + 1))))
    return tuple(
        torch.stack(
            [
                image[:, top : top + side, left : left + side]
                for image, (top, left) in zip(batch, places, strict=True)
            ]
        )
        for batch in images
    )


def _of_draw_before(numbers: Sequence[int], features: Tensor) -> Tensor:
    """For each draw the features of the one before it in the batch of all ranks; it goes round."""
    own = torch.tensor(numbers, device=features.device)
    drawn, order = gather(own).sort()
    return gather(features)[order[torch.searchsorted(drawn, own) - 1]]


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
            schedule: step -> share of the learning rate.
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
            raise ValueError(f"restorer.late_times={late_times}; give 0 or more")
        if min(told) < 0 or sum(told) > 1:
            raise ValueError(
                f"restorer.true_words={told[0]} and restorer.swapped={told[1]}; give shares of 0 "
                "or more that sum to 1 at most"
            )
        self._late_times, self._patch, self._told = late_times, patch, told
        self.network: nn.Module = denoiser.network
        self._denoiser, self._loss = denoiser, loss_of(loss)
        # Frozen and no nn.Module itself: neither saved, averaged, nor wrapped for DDP.
        self._controller = controller
        self._make_optimizer, self._schedule = make_optimizer, schedule
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
        tables = self._denoiser.tables
        few = of_noise = draw_generators(torch.device("cpu"), self._seed, batch.number)
        if self.device.type != "cpu":
            of_noise = draw_generators(self.device, self._seed, batch.number)
        whole, chance = mu, None
        # All before the controller has work on a GPU, which would be waited for.
        if any(self._told):
            chance = torch.stack([torch.rand((), generator=g) for g in few]).to(self.device)
        if self._patch:
            x_0, mu = cut_patches(self._patch, few, x_0, mu)
        t = draw_times(few, tables.T, self._late_times).to(self.device)
        embeddings = self._controller.embed(whole)
        if chance is not None:
            embeddings = self._tell_some(chance, batch, embeddings)
        x_t = sde.diffuse(tables, x_0, mu, t, draw_noise(of_noise, mu))
        predicted = self._denoiser(x_t, mu, t, embeddings)
        losses = self._loss(tables, predicted, x_t, x_0, mu, t)
        loss = losses.mean()
        self.log("loss", loss, prog_bar=True, sync_dist=True)
        self.loss_by_time.update(losses[:, None], bucket_of(t, tables.T, BUCKETS))
        return loss

    def validation_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Score restorations and, beside them, the degraded images; return the restorations."""
        clean, degraded = batch.gt.float() / 255, batch.lq.float() / 255
        seeds = [self._seed] * len(degraded)
        exact: AbstractContextManager[None] = nullcontext()
        if self._denoiser.parameterisation is from_noise:  # as in use: its errors grow
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
        names = time_buckets(self._denoiser.tables.T, BUCKETS)
        losses = self.loss_by_time.compute()[:-1, 0]
        self.log_dict(by_group("loss_by_time", names, losses), sync_dist=True)
        self.loss_by_time.reset()

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, its rate set every step."""
        optimizer: Optimizer = self._make_optimizer(decay_groups(self.parameters()))
        scheduler = LambdaLR(optimizer, self._schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _tell_some(self, chance: Tensor, batch: TrainingBatch, seen: Embeddings) -> Embeddings:
        """True words, or what another image shows, for a share of the images, by chance `[B]`."""
        true, swapped = self._told
        texts = self._controller.tell(batch.degradation, seen).degradation
        others = _of_draw_before(batch.number, seen.degradation)
        told = torch.where((chance < true)[:, None], texts, seen.degradation)
        swap = (chance >= true) & (chance < true + swapped)
        return seen._replace(degradation=torch.where(swap[:, None], others, told))

"""Restoring images: DA-CLIP looks, the network denoises, a sampler walks back in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.clip.daclip import Embeddings
from modules.diffusion.prediction import Prediction, PredictionType
from modules.diffusion.samplers import Step, sample, sampler, seeded_noise
from modules.diffusion.schedule import NoiseSchedule
from modules.diffusion.timesteps import TimestepSpacing, find_timestep_spacing, uniform_timesteps


class Denoiser(NamedTuple):
    """A network with the meaning of its output: (x_t, mu, t, embeddings) -> prediction."""

    network: nn.Module
    schedule: NoiseSchedule
    prediction_type: PredictionType

    def to(self, device: torch.device) -> Denoiser:
        """The same with its network and schedule on a device."""
        return self._replace(network=self.network.to(device), schedule=self.schedule.to(device))

    def __call__(
        self, x_t: Tensor, mu: Tensor, t: int | Tensor, embeddings: Embeddings
    ) -> Prediction:
        """Predict x_0 and the noise of states x_t `[B, 3, H, W]` of degraded images mu."""
        F = self.network(x_t, mu, t, embeddings.degradation, embeddings.content)
        return self.prediction_type(self.schedule, F, x_t, mu, t)


class Sampling(NamedTuple):
    """How to draw a restoration."""

    step: Step
    num_steps: int
    """Network calls an image, in 1..T."""
    timestep_spacing: TimestepSpacing = uniform_timesteps
    """The times of the calls."""


def make_sampling(name: str, eta: float, num_steps: int, timestep_spacing: str) -> Sampling:
    """How to draw, by configuration names.

    Raises:
        ValueError: there is no such sampler or grid, or the sampler takes no such eta.
    """
    return Sampling(sampler(name, eta), num_steps, find_timestep_spacing(timestep_spacing))


def restore(
    denoiser: Denoiser,
    embeddings: Embeddings,
    degraded: Tensor,
    sampling: Sampling,
    seeds: Sequence[int],
) -> Tensor:
    """Draw a restoration of each degraded image.

    Args:
        denoiser: the trained restorer.
        embeddings: of the degraded images, from DA-CLIP.
        degraded: images `[B, 3, H, W]` in [0, 1].
        sampling: sampler, number of calls and their times.
        seeds: one for each image; an image and its seed give one result in any batch.

    Returns:
        Images `[B, 3, H, W]`, clamped to [0, 1].
    """

    def model(x_t: Tensor, mu: Tensor, t: int) -> Prediction:
        return denoiser(x_t, mu, t, embeddings)

    times = sampling.timestep_spacing(denoiser.schedule, sampling.num_steps)
    noise = seeded_noise(seeds)
    return sample(sampling.step, denoiser.schedule, model, degraded, times, noise).clamp(0, 1)

"""Restoring images: DA-CLIP looks, the network denoises, a sampler walks back in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from modules.clip_view import clip_windows
from modules.daclip import DaClip, Embeddings
from modules.prediction import Parameterisation, Prediction
from modules.samplers import Step, sample, sampler, seeded_noise
from modules.sde import Tables
from modules.time_grids import Grid, time_grid, uniform_times


class Denoiser(NamedTuple):
    """A network with the meaning of its output: (x_t, mu, t, embeddings) -> prediction."""

    network: nn.Module
    tables: Tables
    parameterisation: Parameterisation

    def to(self, device: torch.device) -> Denoiser:
        """The same with its network and tables on a device."""
        return self._replace(network=self.network.to(device), tables=self.tables.to(device))

    def __call__(
        self, x_t: Tensor, mu: Tensor, t: int | Tensor, embeddings: Embeddings
    ) -> Prediction:
        """Predict x_0 and the noise of states x_t `[B, 3, H, W]` of degraded images mu."""
        F = self.network(x_t, mu, t, embeddings.degradation, embeddings.content)
        return self.parameterisation(self.tables, F, x_t, mu, t)


class Sampling(NamedTuple):
    """How to draw a restoration."""

    step: Step
    calls: int
    """Network calls an image, in 1..T."""
    grid: Grid = uniform_times
    """The times of the calls."""


def make_sampling(method: str, eta: float, calls: int, grid: str) -> Sampling:
    """How to draw, by configuration names.

    Raises:
        ValueError: there is no such sampler or grid, or the sampler takes no such eta.
    """
    return Sampling(sampler(method, eta), calls, time_grid(grid))


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

    times = sampling.grid(denoiser.tables, sampling.calls)
    noise = seeded_noise(seeds)
    return sample(sampling.step, denoiser.tables, model, degraded, times, noise).clamp(0, 1)


class Controller:
    """A trained DA-CLIP with the degradations it tells apart."""

    def __init__(self, daclip: DaClip, words: Sequence[str], windows: int = 1) -> None:
        """Compute the words' text embeddings once.

        Args:
            daclip: the network.
            words: the degradations.
            windows: along each side of an image, that it is looked at in; 1: it is seen whole.
        """
        self.daclip, self.words = daclip.eval().requires_grad_(False), tuple(words)
        self.windows = windows
        self._texts = self.embed_texts(self.words)

    def to(self, device: torch.device) -> Controller:
        """Move to a device."""
        self.daclip.to(device)
        self._texts = self._texts.to(device)
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Controller:
        """Itself: frozen, it need not be doubled when a training module is, for its average."""
        return self

    @torch.no_grad()
    def embed(self, degraded: Tensor) -> Embeddings:
        """Content and degradation of images `[B, 3, H, W]`, as `clip_view` takes them.

        The images may be on any device; the embeddings are on the controller's.
        """
        return self.daclip.look(degraded, self.windows)

    @torch.no_grad()
    def embed_clean(self, clean: Tensor) -> Tensor:
        """CLIP's own embedding of clean images `[B, 3, H, W]`, seen as in `embed`: `[B, D]`."""
        views = clip_windows(clean, self.daclip.image_size, self.windows).to(self._texts.device)
        each = self.daclip.encode_clean(views.flatten(0, 1))
        mean: Tensor = each.unflatten(0, views.shape[:2]).mean(dim=1)
        return mean

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Directions that texts name, of unit length: `[N, D]`."""
        return normalize(self.daclip.encode_text(self.daclip.tokenize(texts)), dim=-1)

    def tell(self, words: Sequence[str], seen: Embeddings) -> Embeddings:
        """The embeddings of images, with a word's text for each in place of the degradation seen.

        They are as long as what they replace: embeddings are used un-normalised, and those of texts
        have another length than any the restorer has met.

        Raises:
            ValueError: the controller does not know a word.
        """
        if unknown := sorted(set(words) - set(self.words)):
            raise ValueError(
                f"the controller does not know {', '.join(unknown)}, but {', '.join(self.words)}"
            )
        directions = self._texts[[self.words.index(word) for word in words]]
        length = torch.linalg.vector_norm(seen.degradation, dim=-1, keepdim=True)
        return seen._replace(degradation=directions * length)

    def probabilities(self, embeddings: Embeddings) -> Tensor:
        """How likely each word is, `[B, words]`: softmax of the scaled cosines."""
        cosines = normalize(embeddings.degradation, dim=-1) @ self._texts.T
        return (self.daclip.logit_scale.exp() * cosines).softmax(dim=-1)

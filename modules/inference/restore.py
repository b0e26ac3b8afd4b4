"""Restoring images, in one way for all who do: embed, tile, sample, with noise by place.

Each image of a batch has a seed; its noise belongs to places of the image (see `noise`), so that
tiles agree, and an image and its seed give one result in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip.daclip import Embeddings
from modules.clip.encoder import DaClipEncoder
from modules.diffusion.prediction import Prediction, PredictionType
from modules.diffusion.samplers import Problem, Sampler, make_sampler, sample
from modules.diffusion.schedule import NoiseSchedule
from modules.diffusion.timesteps import TIMESTEP_SPACINGS, TimestepSpacing, uniform_timesteps
from modules.inference.device import auto_side, choose_dtype
from modules.inference.noise import place_noise
from modules.inference.tiling import SMALLEST, Window, tiled
from modules.networks import describe

WHITE = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
"""The value of white, by the dtype of images."""
Tile = int | Literal["auto"] | None
"""Side of the tiles in pixels; None: the whole image at once; `auto`: tiles where memory asks."""
OnCall = Callable[[Window, Tensor], None]
"""Called after each network call with the tile and the x_0 `[B, 3, h, w]` predicted there."""


class Conditions(NamedTuple):
    """Embeddings of which one may be left out: no prompt, or no content, is then added."""

    content: Tensor | None
    degradation: Tensor | None


class Denoiser(NamedTuple):
    """A network with the meaning of its output: (x_t, mu, t, embeddings) -> prediction."""

    network: nn.Module
    schedule: NoiseSchedule
    prediction_type: PredictionType

    def to(self, device: torch.device) -> Denoiser:
        """The same with its network and schedule on a device."""
        return self._replace(network=self.network.to(device), schedule=self.schedule.to(device))

    def __call__(
        self, x_t: Tensor, mu: Tensor, t: int | Tensor, embeddings: Embeddings | Conditions
    ) -> Prediction:
        """Predict x_0 and the noise of states x_t `[B, 3, H, W]` of degraded images mu."""
        F = self.network(x_t, mu, t, embeddings.degradation, embeddings.content)
        return self.prediction_type(self.schedule, F, x_t, mu, t)


class Sampling(NamedTuple):
    """How to draw a restoration."""

    sampler: Sampler
    num_steps: int
    """In 1..T."""
    timestep_spacing: TimestepSpacing = uniform_timesteps

    @property
    def network_calls(self) -> int:
        """Network calls that drawing an image takes."""
        return self.sampler.network_calls(self.num_steps)


def make_sampling(name: str, eta: float, num_steps: int, timestep_spacing: str) -> Sampling:
    """How to draw, by registered names.

    Raises:
        ValueError: there is no such sampler or spacing, or the sampler takes no such eta.
    """
    return Sampling(make_sampler(name, eta), num_steps, TIMESTEP_SPACINGS.find(timestep_spacing))


class RestorationModel(NamedTuple):
    """Trained networks on a device, and how they restore."""

    encoder: DaClipEncoder
    denoiser: Denoiser
    sampling: Sampling
    device: torch.device
    dtype: torch.dtype
    """Of the restorer network's products: float32 or bfloat16."""

    @torch.no_grad()
    def embed(self, images: Tensor) -> Embeddings:
        """Embeddings of images `[B, 3, H, W]`, in float32 whatever autocast is on.

        CLIP's view of them is made on the CPU, so that it is the same for every device.
        """
        with torch.autocast(self.device.type, enabled=False):
            return self.encoder.embed(images.cpu())


def place_model(
    encoder: DaClipEncoder,
    denoiser: Denoiser,
    sampling: Sampling,
    device: torch.device,
    precision: str = "auto",
) -> RestorationModel:
    """Bring trained networks to a device.

    Raises:
        ValueError: `precision` is unknown; see `choose_dtype`.
    """
    dtype = choose_dtype(precision, device, denoiser.prediction_type)
    return RestorationModel(encoder.to(device), denoiser.to(device), sampling, device, dtype)


def tile_side(
    model: RestorationModel, height: int, width: int, tile: Tile, batch_size: int = 1
) -> int:
    """Side of the tiles of images, in pixels; of whole images, that of the one tile."""
    if tile == "auto":
        traits = describe(model.denoiser.network)
        bytes_per_pixel = batch_size * traits.bytes_per_pixel(model.dtype)
        tile = auto_side(height, width, bytes_per_pixel, model.device)
    return max(height, width, SMALLEST) if tile is None else tile


@torch.inference_mode()
def restore(
    model: RestorationModel,
    images: Tensor,
    seeds: Sequence[int],
    *,
    embeddings: Embeddings | Conditions | None = None,
    num_steps: int | None = None,
    tile: Tile = "auto",
    strength: float = 1.0,
    on_call: OnCall | None = None,
) -> Tensor:
    """Restore degraded images; no more of them than a row of tiles is held as floats.

    Args:
        model: the trained networks.
        images: `[B, 3, H, W]`: uint8, uint16, or float32 in [0, 1], on any device.
        seeds: of the noise, one for each image, 0 or more.
        embeddings: of the images, on the model's device; None computes them.
        num_steps: None for the model's own number.
        tile: side of the tiles, see `Tile`.
        strength: from 0, the images as they are, to 1, their restorations.
        on_call: called after each network call; what it raises ends the restoration.

    Returns:
        Images `[B, 3, H, W]` of the same dtype, on the CPU.

    Raises:
        ValueError: there is not one seed for each image, or the network's output is not finite.
    """
    if len(seeds) != len(images):
        raise ValueError(f"got {len(seeds)} seeds for a batch of {len(images)} images")
    images = images.cpu()
    height, width = images.shape[-2:]
    embedded = model.embed(images) if embeddings is None else embeddings
    sampling = model.sampling._replace(num_steps=num_steps or model.sampling.num_steps)
    model, made = model._replace(sampling=sampling), torch.empty_like(images)

    def restore_tile(window: Window) -> Tensor:
        top, left, h, w = window
        mu = to_floats(images[..., top : top + h, left : left + w])
        return _restore_tile(model, mu, embedded, seeds, window, on_call)

    side = tile_side(model, height, width, tile, len(images))
    for top, band in tiled(height, width, side, restore_tile):
        rows = slice(top, top + band.shape[-2])
        given = to_floats(images[..., rows, :])
        made[..., rows, :] = _to_levels(given + strength * (band - given), images.dtype)
    return made


def to_floats(images: Tensor) -> Tensor:
    """Images of any dtype in `WHITE` to float32 in [0, 1]."""
    return images.float() / WHITE[images.dtype]


def _restore_tile(
    model: RestorationModel,
    mu: Tensor,
    embeddings: Embeddings | Conditions,
    seeds: Sequence[int],
    window: Window,
    on_call: OnCall | None,
) -> Tensor:
    """`[B, 3, h, w]`, float32 in [0, 1] on the CPU."""
    denoiser, sampling, device = model.denoiser, model.sampling, model.device
    half = model.dtype != torch.float32

    def predict(x_t: Tensor, mu: Tensor, t: int) -> Prediction:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            prediction = denoiser(x_t, mu, t, embeddings)
        if on_call is not None:
            on_call(window, prediction.x_0[..., : window.height, : window.width])
        return prediction

    mu = _pad(mu, describe(denoiser.network).multiple).to(device)
    noise = place_noise(seeds, window.top, window.left)
    times = sampling.timestep_spacing(denoiser.schedule, sampling.num_steps)
    problem = Problem(denoiser.schedule, predict, mu, noise)
    with torch.autocast(device.type, enabled=False):
        x_0 = sample(sampling.sampler, problem, times)
    return x_0[..., : window.height, : window.width].float().clamp(0, 1).cpu()


def _pad(images: Tensor, least: int) -> Tensor:
    """Images with their last row and column repeated, where they are smaller than `least`."""
    down, right = (max(0, least - side) for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down), mode="replicate")


def _to_levels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats to images of a dtype in `WHITE`."""
    if not images.isfinite().all():
        raise NotFiniteError(
            "the network's output is not finite (NaN or infinite): check its weights, or use "
            "precision='float32'"
        )
    levels = images.clamp(0, 1) * WHITE[dtype]
    return levels if dtype == torch.float32 else levels.round().to(dtype)


class NotFiniteError(ValueError):
    """A network's output has values that are NaN or infinite."""

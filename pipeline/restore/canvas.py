"""One image restored tile by tile, in memory that the tiles and not the image decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from modules.clip.daclip import Embeddings
from modules.diffusion.prediction import Prediction
from modules.diffusion.samplers import sample
from modules.inference.noise import canvas_noise
from modules.inference.restore import Denoiser, Sampling
from modules.inference.tiling import Window, tiled
from pipeline.restore.image_io import LEVELS, Canvas

OnCall = Callable[[Window, Tensor], None]
"""Told after each network call: the tile, and the x_0 `[1, 3, h, w]` it predicts there."""


class Work(NamedTuple):
    """What restores an image."""

    denoiser: Denoiser
    dtype: torch.dtype
    """In which the network's products are taken."""
    embeddings: Embeddings
    """What the restorer is told of the whole image."""
    sampling: Sampling
    side: int
    """Of a tile, in pixels."""
    strength: float
    """0 leaves the image, 1 is the restoration."""
    on_call: OnCall


def restore_canvas(work: Work, canvas: Canvas, seed: int) -> Canvas:
    """Restore an image `[H, W, 3]`, in its type.

    Raises:
        ValueError: what the network made is not finite.
    """
    height, width, _ = canvas.shape
    made = np.empty(canvas.shape, dtype=canvas.dtype)

    def restore_tile(tile: Window) -> Tensor:
        return _restore_tile(work, _cut(canvas, tile), tile, seed)

    for top, band in tiled(height, width, work.side, restore_tile):
        rows = slice(top, top + band.shape[1])
        given = _floats(canvas[rows])
        made[rows] = _levels(given + work.strength * (band - given), canvas.dtype)
    return made


def deviation(candidates: Sequence[Canvas]) -> NDArray[np.float32]:
    """Standard deviation over images of values in [0, 1], as the mean of the channels: `[H, W]`."""
    rows = zip(*candidates, strict=True)
    spread = [_floats(np.stack(row)).std(dim=1, correction=0).mean(dim=0) for row in rows]
    found: NDArray[np.float32] = torch.stack(spread).numpy()
    return found


def _restore_tile(work: Work, given: Canvas, tile: Window, seed: int) -> Tensor:
    """`[3, h, w]`, float32 on the CPU."""
    device = work.denoiser.schedule.theta.device
    mu = _grown(_floats(given)[None], work.denoiser).to(device)

    def model(x_t: Tensor, mu: Tensor, t: int) -> Prediction:
        half = work.dtype == torch.bfloat16
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            predicted = work.denoiser(x_t, mu, t, work.embeddings)
        work.on_call(tile, predicted.x_0[..., : tile.height, : tile.width])
        return predicted

    sampling, schedule = work.sampling, work.denoiser.schedule
    times = sampling.timestep_spacing(schedule, sampling.num_steps)
    noise = canvas_noise(seed, tile.top, tile.left)
    restored = sample(sampling.step, schedule, model, mu, times, noise)
    return restored[0, :, : tile.height, : tile.width].float().clamp(0, 1).cpu()


def _cut(canvas: Canvas, tile: Window) -> Canvas:
    return canvas[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]


def _grown(image: Tensor, denoiser: Denoiser) -> Tensor:
    """With its last row and column repeated, where it is smaller than the network takes."""
    least = int(getattr(denoiser.network, "multiple", 1))
    down, right = (max(0, least - side) for side in image.shape[-2:])
    return F.pad(image, (0, right, 0, down), mode="replicate")


def _floats(canvas: Canvas) -> Tensor:
    """`[H, W, 3]` to float32 `[3, H, W]` in [0, 1]."""
    floats = canvas.astype(np.float32) / LEVELS[canvas.dtype]
    return torch.from_numpy(floats).permute(2, 0, 1)


def _levels(image: Tensor, dtype: np.dtype) -> Canvas:
    """Float32 `[3, H, W]` in [0, 1] to `[H, W, 3]` of a type."""
    if not image.isfinite().all():
        raise ValueError(
            "the network made pixels that are not finite; look at its weights, and from Python try "
            "precision='float32'"
        )
    white = LEVELS[dtype]
    levels = (image.clamp(0, 1) * white).permute(1, 2, 0).numpy()
    return (levels if white == 1 else np.rint(levels)).astype(dtype)

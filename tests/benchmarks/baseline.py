"""The plain way to load pairs: whole PNG files, one process, CLIP's view image by image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.images import Pixels
from datamodules.sources.base import FilePair
from modules.clip.preprocess import CLIP_MEAN, CLIP_STD
from tests.benchmarks.laps import Laps


def load_batch(
    pairs: Sequence[FilePair], patch: int, view: int, rng: np.random.Generator, laps: Laps
) -> tuple[Tensor, Tensor, Tensor]:
    """Load a random crop of each pair.

    Args:
        pairs: PNG files of a degraded and a clean image.
        patch: side of the crops, in pixels.
        view: side of CLIP's view, in pixels.
        rng: draws the crops, flips and turns.
        laps: is told of each step.

    Returns:
        Degraded and clean crops `[B, 3, patch, patch]`, float32, RGB in [0, 1], and CLIP's view of
        the degraded ones `[B, 3, view, view]`, normalised.
    """
    return _stack([_load(pair, patch, view, rng, laps) for pair in pairs], laps)


def _load(
    pair: FilePair, patch: int, view: int, rng: np.random.Generator, laps: Laps
) -> tuple[Tensor, Tensor, Tensor]:
    lq, gt = _read(pair.lq), _read(pair.gt)
    laps("read PNG")
    lq, gt = _augment([lq, gt], patch, rng)
    laps("cut and orient")
    lq, gt = (np.ascontiguousarray(image[..., ::-1]) for image in (lq, gt))
    tensors = _to_tensor(lq), _to_tensor(gt)
    laps("to float tensors")
    seen = _clip_tensor(lq, view)
    laps("CLIP view")
    return *tensors, seen


def _read(path: Path) -> Pixels:
    image: Pixels = np.asarray(cv2.imread(str(path)), dtype=np.uint8)
    return image


def _augment(images: list[Pixels], side: int, rng: np.random.Generator) -> list[Pixels]:
    """The same random crop of all, flipped both ways and turned by a quarter at random."""
    height, width = images[0].shape[:2]
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    across, down, quarter = rng.integers(2, size=3)
    cut = [image[top : top + side, left : left + side] for image in images]
    if across:
        cut = [image[:, ::-1] for image in cut]
    if down:
        cut = [image[::-1] for image in cut]
    return [image.transpose(1, 0, 2) for image in cut] if quarter else cut


def _to_tensor(image: Pixels) -> Tensor:
    levels: NDArray[np.float32] = image.astype(np.float32) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1)))


def _clip_tensor(image: Pixels, size: int) -> Tensor:
    small = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (_to_tensor(np.asarray(small)) - mean) / std


def _stack(
    samples: list[tuple[Tensor, Tensor, Tensor]], laps: Laps
) -> tuple[Tensor, Tensor, Tensor]:
    lq, gt, seen = (torch.stack(column) for column in zip(*samples, strict=True))
    laps("collate")
    return lq, gt, seen

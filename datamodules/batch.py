"""Batches of degraded and clean images: the one type that DataModule and networks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.images import Pixels


class Sample(NamedTuple):
    """One degraded image with everything known of it."""

    lq: Pixels
    gt: Pixels
    """Empty where it is not asked for."""
    caption: str
    """Of the clean image; empty where captions are not asked for."""
    degradation: str
    source: str
    """Name of the clean photograph."""
    key: str
    """`SHARD/KEY`."""


class IndexedSample(NamedTuple):
    """One sample as a dataset gives it."""

    sample: Sample
    number: int
    """Of the draw, in training; of the sample, in validation."""
    valid: bool
    """False for padding, which stands for no sample."""
    skipped: tuple[str, ...]
    """The damaged samples that were drawn before this one, each with its fault."""


class Batch(NamedTuple):
    """What a DataModule yields."""

    lq: Tensor
    """Degraded images `[B, 3, H, W]`, uint8, RGB; smaller ones fill the upper left, 0 around."""
    gt: Tensor
    """Clean images, alike; `[B, 3, 0, 0]` where they are not asked for."""
    size: list[tuple[int, int]]
    """Height and width of each degraded image."""
    caption: list[str]
    degradation: list[str]
    source: list[str]
    """Names of the clean photographs."""
    key: list[str]
    """`SHARD/KEY` of each sample."""
    number: list[int]
    """Of the draws, in training; of the samples, in validation."""
    valid: Tensor
    """`[B]`, bool; False marks padding that makes ranks equally long."""
    skipped: list[str]
    """Damaged samples passed over on the way, each with its fault."""


def collate(items: Sequence[IndexedSample]) -> Batch:
    """Stack items whose images have one size.

    Raises:
        ValueError: their images differ in size.
    """
    if len(sizes := {item.sample.lq.shape[:2] for item in items}) > 1:
        raise ValueError(f"a batch mixes image sizes {sorted(sizes)} (height, width)")
    return collate_padded(items)


def collate_padded(items: Sequence[IndexedSample]) -> Batch:
    """Stack items; smaller images are filled up at the bottom and the right."""
    samples = [item.sample for item in items]
    return Batch(
        lq=_stack([sample.lq for sample in samples]),
        gt=_stack([sample.gt for sample in samples]),
        size=[(sample.lq.shape[0], sample.lq.shape[1]) for sample in samples],
        caption=[sample.caption for sample in samples],
        degradation=[sample.degradation for sample in samples],
        source=[sample.source for sample in samples],
        key=[sample.key for sample in samples],
        number=[item.number for item in items],
        valid=torch.tensor([item.valid for item in items]),
        skipped=[line for item in items for line in item.skipped],
    )


def _stack(images: Sequence[Pixels]) -> Tensor:
    height, width = (max(image.shape[side] for image in images) for side in (0, 1))
    stacked = np.zeros((len(images), 3, height, width), np.uint8)
    for into, image in zip(stacked, images, strict=True):
        into[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return torch.from_numpy(stacked)

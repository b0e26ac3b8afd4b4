"""From shards to batches: drawing, decoding and cropping, in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.images import BadImage, Pixels
from datamodules.mixture import Mixture
from datamodules.reader import Sample, SampleAddress, ShardSet
from datamodules.shards import BadShard

MAX_REDRAWS = 20
"""Damaged samples in a row after which one draw gives up."""

Augment = Callable[[Pixels, Pixels, np.random.Generator], tuple[Pixels, Pixels]]
"""(lq, gt, rng) -> the same view of both."""


class TooManyBadSamples(ValueError):
    """More of the training data is damaged than the configuration allows."""


class Item(NamedTuple):
    """One sample as a dataset gives it."""

    sample: Sample
    valid: bool
    """False for padding, which stands for no sample."""
    skipped: tuple[str, ...]
    """The damaged samples that were drawn before this one, each with its fault."""


class Batch(NamedTuple):
    """What a DataModule yields."""

    lq: Tensor
    """Degraded images `[B, 3, H, W]`, uint8, RGB."""
    gt: Tensor
    """Clean images, alike."""
    caption: list[str]
    degradation: list[str]
    source: list[str]
    """Names of the clean photographs."""
    key: list[str]
    """`SHARD/KEY` of each sample."""
    valid: Tensor
    """`[B]`, bool; False marks padding that makes ranks equally long."""
    skipped: list[str]
    """Damaged samples passed over on the way, each with its fault."""


class DrawDataset(Dataset[Item]):
    """The training mixture: item n is draw n, for any n."""

    def __init__(
        self,
        shards: ShardSet,
        captions: Mapping[str, str] | None,
        mixture: Mixture,
        augment: Augment,
    ) -> None:
        """Draw from shards by a mixture."""
        self.shards, self.captions, self.mixture, self.augment = shards, captions, mixture, augment

    def __getitem__(self, n: int) -> Item:
        """Draw n; a damaged sample is passed over for another one of its task.

        Raises:
            TooManyBadSamples: too many in a row were damaged.
        """
        word, position = self.mixture(n)
        addresses, skipped = self.shards.tasks[word], []
        for attempt in range(MAX_REDRAWS):
            address = addresses[(position + attempt) % len(addresses)]
            try:
                sample = address.load(self.captions)
                lq, gt = self.augment(sample.lq, sample.gt, self.mixture.rng(n))
            except (BadImage, BadShard) as error:
                skipped.append(str(error))
            else:
                return Item(sample._replace(lq=lq, gt=gt), True, tuple(skipped))
        raise TooManyBadSamples(
            f"{MAX_REDRAWS} samples of {word!r} in a row cannot be used; the last: {skipped[-1]}"
        )


class WholeDataset(Dataset[Item]):
    """Every sample as it is; numbers past the end give padding."""

    def __init__(self, addresses: Sequence[SampleAddress]) -> None:
        """Read samples at given addresses, without captions."""
        self.addresses = addresses

    def __getitem__(self, i: int) -> Item:
        """Sample i.

        Raises:
            BadImage: it is damaged; validation data must be whole.
        """
        valid = i < len(self.addresses)
        return Item(self.addresses[i if valid else 0].load(None), valid, ())


def random_patch(side: int) -> Augment:
    """A random crop of `side` pixels with random flips and quarter turns, the same for both."""

    def augment(lq: Pixels, gt: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        height, width = lq.shape[:2]
        if min(height, width) < side:
            raise BadImage(f"an image of {width}x{height} is smaller than the patch of {side}")
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))

        def view(image: Pixels) -> Pixels:
            patch: Pixels = np.rot90(image[top : top + side, left : left + side], turns)
            return patch[:, ::-1] if flip else patch

        return view(lq), view(gt)

    return augment


def whole_image(lq: Pixels, gt: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """No augmentation: stage (a) makes its random view on the device."""
    return lq, gt


def collate(items: Sequence[Item]) -> Batch:
    """Stack items.

    Raises:
        ValueError: their images differ in size.
    """
    samples = [item.sample for item in items]
    if len(sizes := {sample.lq.shape[:2] for sample in samples}) > 1:
        raise ValueError(
            f"a batch mixes image sizes {sorted(sizes)}; set the stage's batch_size to 1, or make "
            "shards whose images have one size"
        )
    return Batch(
        lq=_stack([sample.lq for sample in samples]),
        gt=_stack([sample.gt for sample in samples]),
        caption=[sample.caption for sample in samples],
        degradation=[sample.degradation for sample in samples],
        source=[sample.source for sample in samples],
        key=[sample.key for sample in samples],
        valid=torch.tensor([item.valid for item in items]),
        skipped=[line for item in items for line in item.skipped],
    )


def _stack(images: Sequence[Pixels]) -> Tensor:
    stacked = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
    return torch.from_numpy(stacked)

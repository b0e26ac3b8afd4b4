"""From shards to batches: drawing, cropping and decoding, in worker processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset

from datamodules.augment import Augment, View, add_margin, color_jitter
from datamodules.batch import IndexedSample, Sample
from datamodules.degradations import degrade
from datamodules.errors import TooManyBadSamples
from datamodules.images import BadImage, Pixels
from datamodules.mixture import Mixture
from datamodules.shards.index import BadShard
from datamodules.shards.reader import OpenSample, SampleAddress, ShardSet, Window

MAX_REDRAWS = 20
"""How many damaged samples in a row make a draw fail."""
PREFETCH = 2000
"""How many draws ahead remote shards are fetched."""


class TrainDataset(Dataset[IndexedSample]):
    """The training mixture: item n is draw n, for any n."""

    def __init__(
        self,
        shards: ShardSet,
        captions: Mapping[str, str] | None,
        mixture: Mixture,
        augment: Augment,
        with_clean: bool,
        color_jitter: float = 0.0,
    ) -> None:
        """Draw from shards by a mixture.

        Args:
            shards: the training split.
            captions: by SHA-256 of the clean image; None leaves them empty.
            mixture: over the tasks of the shards.
            augment: chooses the crop of an image.
            with_clean: whether the clean image is wanted beside the degraded one.
            color_jitter: strength of the colour jitter applied to clean images before they are
                degraded on the fly; 0 for none.
        """
        self.shards, self.captions, self.mixture = shards, captions, mixture
        self.augment, self.with_clean, self.color_jitter = augment, with_clean, color_jitter

    def __getitem__(self, n: int) -> IndexedSample:
        """Draw n; a damaged sample is replaced by a random other one of its task.

        Raises:
            TooManyBadSamples: too many in a row were damaged.
        """
        word, position = self.mixture(n)
        samples, rng, skipped = self.shards.tasks[word], self.mixture.rng(n), list[str]()
        self._prefetch(n)
        for _ in range(MAX_REDRAWS):
            address = samples[position]
            try:
                return IndexedSample(self._load(address, rng), n, True, tuple(skipped))
            except (BadImage, BadShard) as error:
                skipped.append(str(error))
            position = int(rng.integers(len(samples)))
        raise TooManyBadSamples(
            f"{MAX_REDRAWS} random samples of {word!r} in a row cannot be used; the last: "
            f"{skipped[-1]}"
        )

    def _load(self, address: SampleAddress, rng: np.random.Generator) -> Sample:
        with address.open() as stored:
            metadata = stored.metadata()
            caption = self._caption(stored, metadata["gt_sha256"])
            height, width = _size(stored, self.with_clean)
            view = self._view(stored, height, width, rng)
            if stored.has_lq:
                lq = stored.pixels("lq", view.window)
                gt = stored.pixels("gt", view.window) if self.with_clean else _NOTHING
            else:
                around = add_margin(view.window, height, width)
                clean = stored.pixels("gt", around)
                if self.color_jitter:
                    clean = color_jitter(clean, self.color_jitter, rng)
                lq, gt = _degraded(clean, address.word, view.window, around, rng)
            source, name = metadata["source"], stored.name
        return Sample(view.orient(lq), view.orient(gt), caption, address.word, source, name)

    def _view(self, stored: OpenSample, height: int, width: int, rng: np.random.Generator) -> View:
        try:
            return self.augment(height, width, rng)
        except BadImage as error:
            raise BadImage(f"{stored.name}: {error}") from error

    def _caption(self, stored: OpenSample, digest: str) -> str:
        if self.captions is None:
            return ""
        if caption := self.captions.get(digest):
            return caption
        raise BadImage(f"{stored.name}: has no caption")

    def _prefetch(self, n: int) -> None:
        if self.shards.store.window is None:
            return
        word, position = self.mixture(n + PREFETCH)
        self.shards.store.prefetch(self.shards.tasks[word][position].shard)


class EvalDataset(Dataset[IndexedSample]):
    """Every sample, uncropped; indices past the end give padding."""

    def __init__(self, samples: Sequence[SampleAddress]) -> None:
        """Read samples without captions."""
        self.samples = samples

    def __getitem__(self, i: int) -> IndexedSample:
        """Sample i.

        Raises:
            BadImage: it is damaged, or has no degraded image; validation data must be whole.
        """
        valid = i < len(self.samples)
        return IndexedSample(load_whole(self.samples[i if valid else 0]), i, valid, ())


def size_of(address: SampleAddress) -> tuple[int, int]:
    """Height and width of a stored sample, from its image headers.

    Raises:
        BadImage: it is damaged, or its images differ in size.
        BadShard: the shard has changed since it was opened.
    """
    with address.open() as stored:
        return _size(stored, with_clean=True)


def load_whole(address: SampleAddress) -> Sample:
    """A stored sample, uncropped and without its caption.

    Raises:
        BadImage: it is damaged, or has no degraded image.
        BadShard: the shard has changed since it was opened.
    """
    with address.open() as stored:
        if not stored.has_lq:
            raise BadImage(f"{stored.name}: has no degraded image")
        _size(stored, with_clean=True)
        lq, gt = stored.pixels("lq", None), stored.pixels("gt", None)
        return Sample(lq, gt, "", address.word, stored.metadata()["source"], stored.name)


_NOTHING = np.zeros((0, 0, 3), np.uint8)


def _size(stored: OpenSample, with_clean: bool) -> tuple[int, int]:
    """Height and width; where both images are wanted, they have the same."""
    if not stored.has_lq:
        return stored.size("gt")
    size = stored.size("lq")
    if with_clean and (other := stored.size("gt")) != size:
        raise BadImage(f"{stored.name}: lq is {size}, gt is {other} (height, width)")
    return size


def _degraded(
    clean: Pixels, word: str, window: Window, around: Window, rng: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """Degrade an image and its margin, and crop both to the window."""
    degraded = degrade(word, clean, int(rng.integers(2**63)))
    top, left = window.top - around.top, window.left - around.left
    rows, columns = slice(top, top + window.height), slice(left, left + window.width)
    return degraded[rows, columns], clean[rows, columns]

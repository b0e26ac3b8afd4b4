"""The distinct clean images of a set of samples: many samples may hold the same one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tqdm import tqdm

from datamodules.images import BadImage, Pixels
from datamodules.shards.index import BadShard
from datamodules.shards.reader import SampleAddress

THREADS = 4
CHUNK = 256
"""Samples that a thread takes at a time."""


@dataclass(frozen=True)
class CleanImage:
    """A distinct clean image."""

    digest: str
    """SHA-256 of its pixels."""
    source: str
    """Its name, by the first sample that holds it."""
    copies: list[SampleAddress] = field(default_factory=list)
    """The samples that hold it."""

    def pixels(self) -> Pixels:
        """The image, from the first sample in which it is whole.

        Raises:
            BadImage: it is damaged in all of them.
            BadShard: so is the shard of the last.
        """
        for copy in self.copies[:-1]:
            try:
                return copy.image("gt")
            except (BadImage, BadShard):
                continue
        return self.copies[-1].image("gt")


def clean_images(
    samples: Sequence[SampleAddress], quiet: bool
) -> tuple[list[CleanImage], list[str]]:
    """The distinct clean images, in the order of the samples, and what is wrong with the others.

    Args:
        samples: where to look; only their origins are read.
        quiet: show no progress.
    """
    images: dict[str, CleanImage] = {}
    damaged: list[str] = []
    chunks = [samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK)]
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(samples), desc="samples", unit="sample", disable=quiet) as progress,
    ):
        for chunk, origins in zip(chunks, pool.map(_origins, chunks), strict=True):
            for sample, origin in zip(chunk, origins, strict=True):
                if isinstance(origin, CleanImage):
                    images.setdefault(origin.digest, origin).copies.append(sample)
                else:
                    damaged.append(origin)
            progress.update(len(chunk))
    return list(images.values()), damaged


def _origins(samples: Sequence[SampleAddress]) -> list[CleanImage | str]:
    return [_origin(sample) for sample in samples]


def _origin(sample: SampleAddress) -> CleanImage | str:
    """Which image a sample holds, or why that cannot be told."""
    try:
        origin = sample.metadata()
    except (BadImage, BadShard) as error:
        return str(error)
    return CleanImage(origin["gt_sha256"], origin["source"])

"""One degraded image to restore, in files or in a shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from datamodules.images import BadImage, Pixels, image_size, read_image
from datamodules.shards.reader import SampleAddress


class Pair(NamedTuple):
    """The images of a sample."""

    degraded: Pixels
    clean: Pixels | None
    """Of the same size; None where there is none."""


class Sample(Protocol):
    """One degraded image that is to be restored."""

    @property
    def dataset(self) -> str:
        """What it belongs to."""
        ...

    @property
    def task(self) -> str:
        """The true degradation word."""
        ...

    @property
    def name(self) -> str:
        """How restorations of it are called, unique in its dataset and task."""
        ...

    @property
    def has_clean(self) -> bool:
        """Whether there is a clean image of it."""
        ...

    def load(self) -> Pair:
        """Read its images.

        Raises:
            BadImage: one is damaged, or they differ in size.
            BadShard: its shard has changed.
        """
        ...

    def size(self) -> tuple[int, int]:
        """Height and width."""
        ...


def key_of(sample: Sample) -> str:
    """`DATASET/TASK/NAME`, unique in an evaluation."""
    return f"{sample.dataset}/{sample.task}/{sample.name}"


@dataclass(frozen=True)
class FileSample:
    """A sample in files."""

    dataset: str
    task: str
    lq: Path
    gt: Path | None

    @property
    def name(self) -> str:
        """The degraded image's name without its suffix."""
        return self.lq.stem

    @property
    def has_clean(self) -> bool:
        """Whether a clean file goes with it."""
        return self.gt is not None

    def load(self) -> Pair:
        """Read both files."""
        degraded = read_image(self.lq)
        clean = None if self.gt is None else read_image(self.gt)
        if clean is not None and clean.shape != degraded.shape:
            raise BadImage(f"{self.lq} and {self.gt} differ in size")
        return Pair(degraded, clean)

    def size(self) -> tuple[int, int]:
        """By the header."""
        return image_size(self.lq, str(self.lq))


@dataclass(frozen=True)
class ShardSample:
    """A sample in a shard."""

    dataset: str
    task: str
    name: str
    address: SampleAddress
    has_clean: bool = True

    def load(self) -> Pair:
        """Read both images; every sample of a shard has a clean one."""
        with self.address.open() as stored:
            if not stored.has_lq:
                raise BadImage(f"{stored.name}: has no degraded image")
            degraded, clean = stored.pixels("lq", None), stored.pixels("gt", None)
            if clean.shape != degraded.shape:
                raise BadImage(f"{stored.name}: its lq and gt differ in size")
            return Pair(degraded, clean)

    def size(self) -> tuple[int, int]:
        """Of the stored image."""
        with self.address.open() as stored:
            return stored.size("lq")

"""Where pairs of a degraded and a clean image come from.

A source *plans* its samples cheaply (`plan`), and each planned sample is *made* later, on its own
and in any process, always with the same result. A sample may come without its degraded image,
which training then makes afresh each time it draws the sample.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datamodules.degradations import degrade
from datamodules.errors import SourceError
from datamodules.images import BadImage, Pixels, count_pixels, read_image

SPLITS = ("train", "val")


class PlannedSample(Protocol):
    """A sample that can be made."""

    @property
    def split(self) -> str:
        """`train` or `val`."""
        ...

    @property
    def words(self) -> tuple[str, ...]:
        """The degradations; several only where the degraded image is made in training."""
        ...

    @property
    def key(self) -> str:
        """Unique within words and split; of `[a-z0-9_-]`, since WebDataset cuts keys at dots."""
        ...

    @property
    def source(self) -> str:
        """Name of the clean image, to which captions are given."""
        ...

    @property
    def pixels(self) -> int:
        """About how many pixels its stored images have together; 0 where that cannot be told."""
        ...

    def make(self) -> tuple[Pixels | None, Pixels]:
        """The degraded image, None where training makes it, and the clean one of the same size.

        Raises:
            BadImage: they cannot be read or do not fit each other.
        """
        ...


class PairSource(Protocol):
    """A set of samples, and the files it is made from."""

    def plan(self) -> Sequence[PlannedSample]:
        """All samples, in an order that never changes."""
        ...

    def files(self) -> list[Path]:
        """The files the samples are made from."""
        ...


@dataclass(frozen=True)
class FilePair:
    """A degraded and a clean image file."""

    split: str
    word: str
    key: str
    source: str
    lq: Path
    gt: Path

    @property
    def words(self) -> tuple[str, ...]:
        """The one degradation."""
        return (self.word,)

    @property
    def pixels(self) -> int:
        """By the degraded image's header."""
        return 2 * count_pixels(self.lq)

    def make(self) -> tuple[Pixels, Pixels]:
        """Read both and check that their sizes agree."""
        if not self.gt.is_file():
            raise BadImage(f"{self.lq}: its clean image {self.gt} does not exist")
        lq, gt = read_image(self.lq), read_image(self.gt)
        if lq.shape != gt.shape:
            raise BadImage(f"{self.lq} is {size_text(lq)} but {self.gt} is {size_text(gt)}")
        return lq, gt


@dataclass(frozen=True)
class CleanFile:
    """A clean image file that training degrades."""

    split: str
    words: tuple[str, ...]
    key: str
    source: str
    gt: Path

    @property
    def pixels(self) -> int:
        """By the image's header."""
        return count_pixels(self.gt)

    def make(self) -> tuple[None, Pixels]:
        """Read it."""
        return None, read_image(self.gt)


@dataclass(frozen=True)
class DegradedFile:
    """A clean image file that is degraded once and for all."""

    split: str
    word: str
    key: str
    source: str
    gt: Path
    seed: int

    @property
    def words(self) -> tuple[str, ...]:
        """The one degradation."""
        return (self.word,)

    @property
    def pixels(self) -> int:
        """By the image's header."""
        return 2 * count_pixels(self.gt)

    def make(self) -> tuple[Pixels, Pixels]:
        """Read it and degrade it."""
        clean = read_image(self.gt)
        return degrade(self.word, clean, stable_seed(self.seed, self.source, self.word)), clean


def check_list(values: Sequence[str], known: Sequence[str], parameter: str) -> None:
    """Raise SourceError unless a parameter is a list of known values."""
    if isinstance(values, str):
        raise SourceError(f"{parameter}={values}: give a list, as in [{values}]")
    if unknown := sorted(set(values) - set(known)):
        raise SourceError(
            f"{parameter}: unknown {', '.join(map(repr, unknown))}; choose from {', '.join(known)}"
        )


def by_stem(images: Sequence[Path]) -> dict[str, Path]:
    """Images by their names without suffix.

    Raises:
        ValueError: two of one folder differ in their suffix alone.
    """
    stems: dict[Path, Path] = {}
    for path in images:
        if other := stems.get(path.with_suffix("")):
            raise ValueError(f"{other} and {path} differ in their suffix alone; remove one of them")
        stems[path.with_suffix("")] = path
    return {stem.name: path for stem, path in stems.items()}


def sample_key(name: str, number: int) -> str:
    """A key for a file name, in the alphabet WebDataset keys are safe in, unique by its number."""
    safe = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")
    return f"{safe[:64]}-{number:06d}"


def stable_seed(*parts: object) -> int:
    """A 63-bit seed made from any printable values, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def size_text(image: Pixels) -> str:
    """`WIDTHxHEIGHT`, for messages."""
    return f"{image.shape[1]}x{image.shape[0]}"

"""Where pairs of a degraded and a clean image come from.

A source *plans* its pairs cheaply (`plan`), and each planned pair is *made* later, on its own and
in any process, always with the same result.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from datamodules.degradations import WORDS, degrade
from datamodules.images import BadImage, Pixels, list_images, read_image
from datamodules.photos import SPLITS, Photo, PhotoSource


class PlannedPair(Protocol):
    """A pair that can be made."""

    @property
    def split(self) -> str:
        """`train` or `val`."""
        ...

    @property
    def word(self) -> str:
        """The degradation."""
        ...

    @property
    def key(self) -> str:
        """Unique within word and split; of `[a-z0-9_-]`, since WebDataset cuts keys at dots."""
        ...

    @property
    def source(self) -> str:
        """Name of the clean photograph, to which captions are given."""
        ...

    def make(self) -> tuple[Pixels, Pixels]:
        """The degraded and the clean image, of one size.

        Raises:
            BadImage: they cannot be read or do not fit each other.
        """
        ...


class PairSource(Protocol):
    """A set of pairs, and the files it is made from."""

    def plan(self) -> Sequence[PlannedPair]:
        """All pairs, in an order that never changes."""
        ...

    def files(self) -> list[Path]:
        """The files the pairs are made from."""
        ...


@dataclass(frozen=True)
class SyntheticPair:
    """A crop of a photograph under one synthetic degradation."""

    photo: Photo
    word: str
    draw: int
    crop: int | None
    zoom: tuple[float, float]
    seed: int

    @property
    def split(self) -> str:
        """The photograph's split."""
        return self.photo.split

    @property
    def key(self) -> str:
        """Photograph and draw."""
        return f"{safe_key(self.photo.name)}-{self.draw:04d}"

    @property
    def source(self) -> str:
        """The photograph's name."""
        return self.photo.name

    def make(self) -> tuple[Pixels, Pixels]:
        """Crop, the same for every word of this draw, then degrade."""
        clean = read_image(self.photo.path)
        if self.crop is not None:
            rng = np.random.default_rng(stable_seed(self.seed, self.photo.name, self.draw))
            clean = random_crop(clean, self.crop, self.zoom, rng, self.photo.name)
        seed = stable_seed(self.seed, self.photo.name, self.draw, self.word)
        return degrade(self.word, clean, seed), clean


@dataclass(frozen=True)
class SyntheticPairs:
    """Every photograph, several times, under every synthetic degradation.

    Attributes:
        photos: the clean photographs.
        draws: how often each photograph is used per word, for `train` and `val`.
        crop: side of the square crops in pixels; None takes the whole photograph.
        zoom: range of the crop's side in the photograph, in units of `crop`; it is then resized.
        words: the degradations; None takes all there are.
        seed: of crops and degradations.
    """

    photos: PhotoSource
    draws: dict[str, int]
    crop: int | None
    zoom: Sequence[float]
    words: Sequence[str] | None
    seed: int

    def plan(self) -> list[SyntheticPair]:
        """All pairs: by split, word, photograph, draw.

        Raises:
            ValueError: a word is unknown.
        """
        words = WORDS if self.words is None else tuple(self.words)
        check_words(words, WORDS, "shards.source.words")
        photos = self.photos.photos()
        return [
            SyntheticPair(photo, word, draw, self.crop, (self.zoom[0], self.zoom[1]), self.seed)
            for split in SPLITS
            for word in words
            for photo in photos
            if photo.split == split
            for draw in range(self.draws[split])
        ]

    def files(self) -> list[Path]:
        """The photographs."""
        return [photo.path for photo in self.photos.photos()]


@dataclass(frozen=True)
class FilePair:
    """A degraded and a clean image file."""

    split: str
    word: str
    key: str
    lq: Path
    gt: Path | None

    @property
    def source(self) -> str:
        """The clean image's file name."""
        return (self.gt or self.lq).name

    def make(self) -> tuple[Pixels, Pixels]:
        """Read both and check that their sizes agree."""
        if self.gt is None:
            raise BadImage(f"{self.lq}: no image of the same name in {self.lq.parents[1] / 'GT'}")
        lq, gt = read_image(self.lq), read_image(self.gt)
        if lq.shape != gt.shape:
            raise BadImage(f"{self.lq} is {_size(lq)} but {self.gt} is {_size(gt)}")
        return lq, gt


@dataclass(frozen=True)
class PairFolder:
    """Pairs in ROOT/{train,val}/{word}/{LQ,GT}, matched by file name without suffix."""

    root: str
    words: Sequence[str] | None
    """The words there may be, None for the ten; a folder of any other name is an error."""

    def plan(self) -> list[FilePair]:
        """All pairs; an LQ image without a GT image is one that cannot be made.

        Raises:
            FileNotFoundError: a folder is missing or empty.
            ValueError: a folder is named after no known degradation.
        """
        return [pair for split in SPLITS for pair in self._split(split)]

    def files(self) -> list[Path]:
        """All image files."""
        return [path for pair in self.plan() for path in (pair.lq, pair.gt) if path is not None]

    def _split(self, split: str) -> list[FilePair]:
        folder = Path(self.root) / split
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; expected {folder}/WORD/{{LQ,GT}}")
        words = sorted(p.name for p in folder.iterdir() if p.is_dir())
        check_words(words, self.words or WORDS, str(folder))
        return [pair for word in words for pair in self._word(split, word, folder / word)]

    def _word(self, split: str, word: str, folder: Path) -> list[FilePair]:
        clean = {path.stem: path for path in list_images(folder / "GT")}
        return [
            FilePair(split, word, f"{safe_key(lq.stem)}-{i:06d}", lq, clean.get(lq.stem))
            for i, lq in enumerate(list_images(folder / "LQ"))
        ]


def check_words(words: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raise ValueError unless all words are known ones."""
    if unknown := sorted(set(words) - set(known)):
        raise ValueError(
            f"{where}: unknown degradation {', '.join(map(repr, unknown))}; known words: "
            f"{', '.join(known)}. Rename it, or list your own words in shards.source.words"
        )


def safe_key(name: str) -> str:
    """A name in the alphabet WebDataset keys are safe in."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")


def stable_seed(*parts: object) -> int:
    """A 63-bit seed made from any printable values, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def random_crop(
    image: Pixels, side: int, zoom: tuple[float, float], rng: np.random.Generator, name: str
) -> Pixels:
    """A random square of `zoom` times `side` pixels, resized to `side`.

    Raises:
        BadImage: the image is smaller than `side`.
    """
    shorter = min(image.shape[:2])
    if shorter < side:
        raise BadImage(f"{name} is {_size(image)}, smaller than the crop of {side}")
    window = min(shorter, round(side * rng.uniform(*zoom)))
    top = int(rng.integers(image.shape[0] - window + 1))
    left = int(rng.integers(image.shape[1] - window + 1))
    square = image[top : top + window, left : left + window]
    resized = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(resized, dtype=np.uint8)


def _size(image: Pixels) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"

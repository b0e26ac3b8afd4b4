"""Pairs made from clean photographs by the synthetic degradations."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from datamodules.degradations import WORDS, degrade
from datamodules.errors import MissingPackage, SourceError
from datamodules.images import BadImage, Pixels, count_pixels, list_images, read_image
from datamodules.sources.base import SPLITS, check_list, sample_key, size_text, stable_seed


@dataclass(frozen=True)
class Photo:
    """A clean photograph on disk."""

    name: str
    """Unique among the photographs of its source."""
    split: str
    path: Path


class PhotoSource(Protocol):
    """A set of clean photographs, each in exactly one split."""

    def photos(self) -> list[Photo]:
        """All photographs, in an order that never changes."""
        ...


EMBEDDED: Mapping[str, tuple[str, str]] = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "motorcycle_left": ("skimage", "data/motorcycle_left.png"),
    "motorcycle_right": ("skimage", "data/motorcycle_right.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
"""Photographs that come inside installed packages: name -> (package, file)."""


@dataclass(frozen=True)
class EmbeddedPhotos:
    """The photographs that come with scikit-image and scikit-learn; nothing is downloaded."""

    train: Sequence[str]
    val: Sequence[str]

    def photos(self) -> list[Photo]:
        """The named photographs of both splits.

        Raises:
            ValueError: a name is unknown or in both splits.
        """
        if unknown := (set(self.train) | set(self.val)) - set(EMBEDDED):
            raise ValueError(f"unknown photos {sorted(unknown)}; there are {sorted(EMBEDDED)}")
        if both := set(self.train) & set(self.val):
            raise ValueError(f"photos {sorted(both)} are in both train and val")
        return [
            Photo(name, split, _package_file(*EMBEDDED[name]))
            for split, names in zip(SPLITS, (self.train, self.val), strict=True)
            for name in names
        ]


@dataclass(frozen=True)
class PhotoFolder:
    """Clean photographs in ROOT/train and ROOT/val."""

    root: str

    def photos(self) -> list[Photo]:
        """All images of both folders, named by their files, and by the folder where both have one.

        Raises:
            FileNotFoundError: a folder is missing or holds no image.
        """
        found = [(split, path) for split in SPLITS for path in list_images(Path(self.root) / split)]
        counts = Counter(path.name for _, path in found)
        return [
            Photo(path.name if counts[path.name] == 1 else f"{split}/{path.name}", split, path)
            for split, path in found
        ]


def _package_file(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0]) / file


@dataclass(frozen=True)
class CropOfPhoto:
    """A crop of a photograph, under one synthetic degradation unless training is to degrade it."""

    photo: Photo
    number: int
    """Of this crop among those of the same words and split."""
    words: tuple[str, ...]
    draw: int
    crop: int | None
    zoom: tuple[float, float]
    seed: int
    on_the_fly: bool

    @property
    def split(self) -> str:
        """The photograph's split."""
        return self.photo.split

    @property
    def key(self) -> str:
        """Photograph and number."""
        return sample_key(self.photo.name, self.number)

    @property
    def source(self) -> str:
        """The photograph's name."""
        return self.photo.name

    @property
    def pixels(self) -> int:
        """Of the crop."""
        pixels = count_pixels(self.photo.path) if self.crop is None else self.crop**2
        return pixels if self.on_the_fly else 2 * pixels

    def make(self) -> tuple[Pixels | None, Pixels]:
        """Crop, the same for every word of this draw, then degrade."""
        clean = read_image(self.photo.path)
        if self.crop is not None:
            rng = np.random.default_rng(stable_seed(self.seed, self.photo.name, self.draw))
            clean = random_crop(clean, self.crop, self.zoom, rng, self.photo.name)
        if self.on_the_fly:
            return None, clean
        seed = stable_seed(self.seed, self.photo.name, self.draw, self.words[0])
        return degrade(self.words[0], clean, seed), clean


@dataclass(frozen=True)
class SyntheticPairs:
    """Every photograph, several times, under every synthetic degradation.

    Attributes:
        photos: the clean photographs.
        draws: how often each photograph is cropped per word, for `train` and `val`.
        crop: side of the square crops in pixels; None takes the whole photograph.
        zoom: range of the crop's side in the photograph, in units of `crop`; it is then resized.
        words: the degradations; None takes all there are.
        on_the_fly: store clean crops for training, which degrades them afresh at each draw.
        seed: of crops and degradations.
    """

    photos: PhotoSource
    draws: dict[str, int]
    crop: int | None
    zoom: Sequence[float]
    words: Sequence[str] | None
    on_the_fly: bool
    seed: int

    def __post_init__(self) -> None:
        """Check the values."""
        if set(self.draws) != set(SPLITS) or min(self.draws.values()) < 0:
            raise SourceError(f"draws={dict(self.draws)}: give train and val, from 0")
        if self.crop is not None and self.crop < 32:
            raise SourceError(f"crop={self.crop}; crops have at least 32 pixels a side")
        if len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1]:
            raise SourceError(f"zoom={self.zoom}: give [LEAST, MOST], above 0")

    def plan(self) -> list[CropOfPhoto]:
        """All crops: by split, words, photograph, draw.

        Raises:
            SourceError: a word is unknown.
        """
        words = WORDS if self.words is None else self.words
        check_list(words, WORDS, "words")
        words = tuple(words)
        photos, zoom = self.photos.photos(), (self.zoom[0], self.zoom[1])
        plan = []
        for split in SPLITS:
            fresh = self._fresh(split)
            crops = [
                (photo, draw)
                for photo in photos
                if photo.split == split
                for draw in range(self._draws(split))
            ]
            for group in [words] if fresh else [(word,) for word in words]:
                plan += [
                    CropOfPhoto(photo, i, group, draw, self.crop, zoom, self.seed, fresh)
                    for i, (photo, draw) in enumerate(crops)
                ]
        return plan

    def files(self) -> list[Path]:
        """The photographs."""
        return [photo.path for photo in self.photos.photos()]

    def _draws(self, split: str) -> int:
        """Whole photographs that training degrades are stored once."""
        return 1 if self._fresh(split) and self.crop is None else self.draws[split]

    def _fresh(self, split: str) -> bool:
        return self.on_the_fly and split == "train"


def random_crop(
    image: Pixels, side: int, zoom: tuple[float, float], rng: np.random.Generator, name: str
) -> Pixels:
    """A random square of `zoom` times `side` pixels, resized to `side`.

    Raises:
        BadImage: the image is smaller than `side`.
    """
    shorter = min(image.shape[:2])
    if shorter < side:
        raise BadImage(f"{name} is {size_text(image)}, smaller than the crop of {side}")
    window = min(shorter, round(side * rng.uniform(*zoom)))
    top = int(rng.integers(image.shape[0] - window + 1))
    left = int(rng.integers(image.shape[1] - window + 1))
    square = image[top : top + window, left : left + window]
    resized = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(resized, dtype=np.uint8)

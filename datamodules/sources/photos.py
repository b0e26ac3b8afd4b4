"""Where clean photographs come from."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datamodules.images import list_images

SPLITS = ("train", "val")


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
        raise FileNotFoundError(f"package {package} is not installed; run `make setup`")
    return Path(spec.submodule_search_locations[0]) / file

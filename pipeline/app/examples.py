"""Photographs to try the page on: those that come inside a package, each with another fault."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from datamodules.degradations import WORDS, degrade
from datamodules.files import atomic_write
from datamodules.images import Pixels, encode_png, read_image
from datamodules.sources.photos import EmbeddedPhotos

NAMES = ("chelsea", "coffee", "astronaut", "china", "flower")
SIDE = 256
"""Of an example, in pixels."""


def make_examples(folder: Path) -> list[Path]:
    """Write one degraded photograph for each of the ten words, named by it."""
    photos = [read_image(photo.path) for photo in EmbeddedPhotos(NAMES, ()).photos()]
    made = []
    for seed, word in enumerate(WORDS):
        clean = photos[seed % len(photos)]
        degraded = degrade(word, _square(clean), seed)
        made.append(folder / f"{word}.png")
        with atomic_write(made[-1]) as file:
            file.write(encode_png(degraded))
    return made


def _square(image: Pixels) -> Pixels:
    """The middle of an image, with a side of SIDE."""
    height, width, _ = image.shape
    scale = SIDE / min(height, width)
    size = max(SIDE, round(width * scale)), max(SIDE, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - SIDE) // 2, (size[0] - SIDE) // 2
    middle: Pixels = np.ascontiguousarray(small[top : top + SIDE, left : left + SIDE])
    return middle

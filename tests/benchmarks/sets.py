"""What the benchmark reads: pairs of pictures, and a large set of tiny samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datamodules.degradations import WORDS, degrade
from datamodules.files import atomic_write
from datamodules.images import Pixels, encode_png, read_image
from datamodules.shards.index import Shard
from datamodules.shards.writer import Format, write_shards
from datamodules.sources.base import CleanFile, FilePair, sample_key
from datamodules.sources.synthetic import EMBEDDED, EmbeddedPhotos

FLY_WORDS = ("jpeg-compressed", "noisy", "uncompleted")
"""What training degrades afresh."""
GRAIN = 1.5
"""Standard deviation of the noise of an enlarged photograph, in levels; smooth, its PNG would be
smaller and faster than a camera's."""
ENCODINGS = ("npy", "png")
TINY = 32
PER_SHARD = 100


def make_pairs(folder: Path, width: int, height: int, count: int) -> list[FilePair]:
    """PNG files of `count` clean pictures, each under one synthetic degradation, in turn."""
    photos = EmbeddedPhotos(tuple(EMBEDDED), ()).photos()
    pairs = []
    for number in range(count):
        rng = np.random.default_rng(number)
        photo, word = photos[number % len(photos)], WORDS[number % len(WORDS)]
        clean = _picture(read_image(photo.path), width, height, rng)
        key = sample_key(photo.name, number)
        lq, gt = folder / f"{key}-lq.png", folder / f"{key}-gt.png"
        for path, image in ((lq, degrade(word, clean, number)), (gt, clean)):
            with atomic_write(path) as file:
                file.write(encode_png(image))
        pairs.append(FilePair("train", word, key, photo.name, lq, gt))
    return pairs


def _picture(photo: Pixels, width: int, height: int, rng: np.random.Generator) -> Pixels:
    """A random part of a photograph, enlarged where it is smaller than asked for, with grain."""
    scale = max(width / photo.shape[1], height / photo.shape[0], 1.0)
    large = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    top, left = (
        int(rng.integers(have - need + 1))
        for have, need in zip(large.shape, (height, width), strict=False)
    )
    part = large[top : top + height, left : left + width].astype(np.float32)
    grain = rng.standard_normal(part.shape, dtype=np.float32) * GRAIN
    return np.rint(part + grain).clip(0, 255).astype(np.uint8)


def shard_pairs(pairs: Sequence[FilePair], folder: Path, form: Format) -> None:
    """The pairs as shards in a folder for each encoding, and the clean pictures in `clean`."""
    for encoding in ENCODINGS:
        write_shards(pairs, folder / encoding, _encoded(form, encoding), 0.0, num_workers=0)
    clean = [CleanFile("train", FLY_WORDS, pair.key, pair.source, pair.gt) for pair in pairs]
    write_shards(clean, folder / "clean", form, 0.0, num_workers=0)


def _encoded(form: Format, encoding: str) -> Format:
    return Format(encoding, form.tile_size, form.shard_mb)


def megabytes(folder: Path, pattern: str) -> float:
    """Of the files in a folder whose names fit."""
    return sum(path.stat().st_size for path in folder.glob(pattern)) / 1e6


@dataclass(frozen=True)
class TinySample:
    """A clean picture of 32 x 32, which costs nothing to make."""

    number: int
    split: str = "train"
    words: tuple[str, ...] = FLY_WORDS
    source: str = "tiny"
    pixels: int = TINY**2

    @property
    def key(self) -> str:
        """Its number."""
        return sample_key("tiny", self.number)

    def make(self) -> tuple[None, Pixels]:
        """One grey."""
        return None, np.full((TINY, TINY, 3), self.number % 256, np.uint8)


def make_tiny(folder: Path, count: int, workers: int) -> list[Shard]:
    """`count` tiny samples in shards of a hundred, which a real shard holds too."""
    samples = [TinySample(number) for number in range(count)]
    form = Format("npy", None, shard_mb=PER_SHARD * TINY**2 * 3 / 1e6)
    return write_shards(samples, folder, form, 0.0, workers)

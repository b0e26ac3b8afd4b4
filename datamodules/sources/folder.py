"""Pairs of images as people keep them: ROOT/{train,val}/{word}/{LQ,GT}."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.degradations import WORDS
from datamodules.errors import MissingDegraded, MissingSplit, SourceError, UnknownWord
from datamodules.images import list_images
from datamodules.sources.base import (
    SPLITS,
    CleanFile,
    DegradedFile,
    FilePair,
    PlannedSample,
    by_stem,
    check_list,
    sample_key,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairFolder:
    """Pairs in ROOT/{train,val}/{word}/{LQ,GT}, matched by file name without suffix.

    Attributes:
        root: the folder with `train` and `val`.
        splits: which of the two there are; `val` alone will do for evaluation.
        words: the words there may be; None for those that can be synthesised here. A folder of
            any other name is an error.
        synthetic: words whose degraded images are synthetic: training makes them from GT at each
            draw, even where there is a folder LQ; validation takes LQ, or where there is none makes
            them once.
        seed: of the synthetic degradations of validation.
    """

    root: str
    splits: Sequence[str]
    words: Sequence[str] | None
    synthetic: Sequence[str]
    seed: int

    def plan(self) -> list[PlannedSample]:
        """All samples; an LQ image without a GT image is one that cannot be made.

        Raises:
            FileNotFoundError: a folder is missing or empty.
            ValueError: a folder is named after no known degradation, two files of a folder differ
                in their suffix alone, or a word without synthetic degradation is to be synthetic.
        """
        check_list(self.splits, SPLITS, "splits")
        check_list(self.synthetic, WORDS, "synthetic")
        if not self.splits:
            raise SourceError("splits=[]: give train, val or both")
        return [sample for split in self.splits for sample in self._split(split)]

    def files(self) -> list[Path]:
        """All image files."""
        return sorted(p for s in self.splits for p in (Path(self.root) / s).glob("*/[LG][QT]/*"))

    def _split(self, split: str) -> list[PlannedSample]:
        folder = Path(self.root) / split
        if not folder.is_dir():
            raise MissingSplit(f"no folder {folder}; expected {folder}/WORD/{{LQ,GT}}")
        words = sorted(p.name for p in folder.iterdir() if p.is_dir())
        known = self.words or WORDS
        if unknown := [word for word in words if word not in known]:
            raise UnknownWord(
                f"{folder}: unknown degradation {', '.join(map(repr, unknown))}; known words: "
                f"{', '.join(known)}"
            )
        return [sample for word in words for sample in self._word(split, word, folder / word)]

    def _word(self, split: str, word: str, folder: Path) -> Sequence[PlannedSample]:
        clean = by_stem(list_images(folder / "GT"))
        if word in self.synthetic and (split == "train" or not (folder / "LQ").is_dir()):
            return [self._synthetic(split, word, i, p) for i, p in enumerate(clean.values())]
        degraded = _degraded(folder, word)
        if alone := len(set(clean) - set(degraded)):
            log.warning("%s: %d of %d clean images have no LQ image", folder, alone, len(clean))
        pairs = (
            (i, lq, clean.get(stem, folder / "GT" / lq.name))
            for i, (stem, lq) in enumerate(degraded.items())
        )
        return [
            FilePair(split, word, sample_key(lq.stem, i), self._source(gt), lq, gt)
            for i, lq, gt in pairs
        ]

    def _synthetic(self, split: str, word: str, number: int, gt: Path) -> PlannedSample:
        key, source = sample_key(gt.stem, number), self._source(gt)
        if split == "train":
            return CleanFile(split, (word,), key, source, gt)
        return DegradedFile(split, word, key, source, gt, self.seed)

    def _source(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _degraded(folder: Path, word: str) -> dict[str, Path]:
    if not (folder / "LQ").is_dir() and word in WORDS:
        raise MissingDegraded(f"no folder {folder / 'LQ'} of degraded images")
    return by_stem(list_images(folder / "LQ"))

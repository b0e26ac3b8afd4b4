"""The images that are evaluated: validation shards, or folders of degraded and clean images."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from datamodules.images import BadImage, image_size, list_images
from datamodules.shards.index import INDEX
from datamodules.shards.reader import ShardSet
from datamodules.sources.base import SPLITS
from pipeline.evaluation.samples import FileSample, Sample, ShardSample, key_of

log = logging.getLogger(__name__)

SHOWN = 20
"""Names that a message lists of each kind of fault."""


def read_sets(folders: Mapping[str, Path], words: Sequence[str] | None) -> list[Sample]:
    """All samples of some sets, in an order that never changes.

    Args:
        folders: name of a dataset -> a folder of shards, whose validation split is taken, or of
            `WORD/LQ` with or without `WORD/GT`. An empty name takes that of the folder, or in
            shards of the first folder in the clean images' own names.
        words: the degradations there may be; None for any.

    Raises:
        FileNotFoundError: a folder is missing, or has no images.
        ValueError: a degradation is unknown, or images do not make pairs.
    """
    samples: list[Sample] = []
    for dataset, folder in folders.items():
        if (folder / INDEX).is_file():
            samples += _of_shards(dataset, folder, words)
        elif folder.is_dir():
            samples += _of_folder(dataset or folder.resolve().name, folder, words)
        else:
            raise FileNotFoundError(f"evaluate.data: no folder {folder}")
    keys = Counter(map(key_of, samples))
    if twice := [key for key, count in keys.items() if count > 1]:
        raise ValueError(f"evaluate.data: {few(twice)} come twice; give the sets names")
    return samples


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _of_shards(dataset: str, folder: Path, known: Sequence[str] | None) -> list[ShardSample]:
    shards = ShardSet(folder, "val")
    _check_words(shards.words, known, folder)
    found = []
    for address in shards.all():
        with address.open() as stored:
            source = PurePosixPath(stored.metadata()["source"])
            key = stored.name.rpartition("/")[2]
        found.append((dataset or _dataset_of(source), address, source.stem, key))
    stems: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, address, stem, _ in found:
        stems[name, address.word].append(stem)
    unique = {group for group, names in stems.items() if len(set(names)) == len(names)}
    return [
        ShardSample(name, address.word, stem if (name, address.word) in unique else key, address)
        for name, address, stem, key in found
    ]


def _dataset_of(source: PurePosixPath) -> str:
    """The first folder in a clean image's name, unless it only tells the split."""
    first = source.parts[0] if len(source.parts) > 1 else ""
    return "validation" if first in ("", "..", *SPLITS) else first


def _of_folder(dataset: str, folder: Path, known: Sequence[str] | None) -> list[FileSample]:
    words = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not words:
        raise FileNotFoundError(
            f"evaluate.data: {folder} has neither {INDEX} nor folders WORD/LQ; nothing to evaluate"
        )
    _check_words(words, known, folder)
    return [sample for word in words for sample in _of_word(dataset, word, folder / word)]


def _check_words(words: Iterable[str], known: Sequence[str] | None, folder: Path) -> None:
    if known is None or not (unknown := sorted(set(words) - set(known))):
        return
    splits = [name for name in unknown if (folder / name).is_dir() and name in SPLITS]
    hint = f"Give {folder / splits[-1]}" if splits else "Rename the folder, or move it elsewhere"
    raise ValueError(
        f"evaluate.data: unknown task {', '.join(map(repr, unknown))} in {folder}; known ones: "
        f"{', '.join(known)}. {hint}"
    )


def _of_word(dataset: str, word: str, folder: Path) -> list[FileSample]:
    degraded = _by_stem(list_images(folder / "LQ"))
    if not (folder / "GT").is_dir():
        return [FileSample(dataset, word, lq, None) for lq in degraded.values()]
    clean = _by_stem(list_images(folder / "GT"))
    if alone := [str(lq) for stem, lq in degraded.items() if stem not in clean]:
        raise ValueError(
            f"{folder / 'GT'}: no clean image of this name for {few(alone)}; add them, or leave "
            "out the whole folder GT"
        )
    if left := [str(gt) for stem, gt in clean.items() if stem not in degraded]:
        log.warning("not evaluated, for they have no degraded image: %s", few(left))
    pairs = [FileSample(dataset, word, lq, clean[stem]) for stem, lq in degraded.items()]
    wrong = [pair for pair in pairs if pair.gt and _differ(pair.lq, pair.gt)]
    if wrong:
        names = [f"{pair.lq} and {pair.gt}" for pair in wrong]
        raise ValueError(f"degraded and clean image differ in size: {few(names)}")
    return pairs


def _differ(degraded: Path, clean: Path) -> bool:
    try:
        return image_size(degraded, str(degraded)) != image_size(clean, str(clean))
    except BadImage:  # the report names it
        return False


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in paths:
        if other := stems.get(path.stem):
            raise ValueError(f"{other} and {path} differ in their suffix alone; remove one of them")
        stems[path.stem] = path
    return stems

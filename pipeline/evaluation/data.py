"""What is evaluated: samples in shards or folders, and other methods' outputs for them."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from datamodules.images import SUFFIXES, BadImage, Pixels, image_size, list_images, read_image
from datamodules.shards.index import INDEX
from datamodules.shards.reader import SampleAddress, ShardSet
from datamodules.sources.base import SPLITS, by_stem

log = logging.getLogger(__name__)

SHOWN = 20
"""Names that a message lists of each kind of fault."""
LAYOUTS = "DATASET/TASK/NAME.png, TASK/NAME.png or NAME.png"
"""What a folder of outputs may look like; NAME is that of the degraded image."""


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
    degraded = by_stem(list_images(folder / "LQ"))
    if not (folder / "GT").is_dir():
        return [FileSample(dataset, word, lq, None) for lq in degraded.values()]
    clean = by_stem(list_images(folder / "GT"))
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


class BadOutputs(ValueError):
    """Folders of outputs that are not one image for each sample; the message lists every fault."""


def find_outputs(
    folders: Mapping[str, Path], samples: Sequence[Sample]
) -> dict[str, dict[str, Path]]:
    """The output of each method for each sample, by the sample's key.

    Args:
        folders: name of a method -> its folder, laid out as LAYOUTS says.
        samples: all that are evaluated.

    Raises:
        FileNotFoundError: there is no such folder.
        BadOutputs: an output is missing, one too many, in two places, damaged, or of another size
            than its sample.
    """
    found, faults = {}, list[str]()
    for method, root in folders.items():
        if not root.is_dir():
            raise FileNotFoundError(f"evaluate.methods.{method}: no folder {root}")
        matches, left = _match(root, samples)
        found[method] = {key: paths[0] for key, paths in matches.items() if paths}
        lines = [
            f"{kind}: {len(names)} ({few(names)})"
            for kind, names in _faults(root, samples, matches, left)
            if names
        ]
        if lines:
            faults += [f"evaluate.methods.{method}={root}", *(f"  {line}" for line in lines)]
    if faults:
        listed = "\n".join(faults)
        raise BadOutputs(
            f"the folders of outputs are not one image for each of {len(samples)} samples:\n"
            f"{listed}\nA folder holds {LAYOUTS}, named as the degraded image, and nothing else"
        )
    return found


def _match(root: Path, samples: Sequence[Sample]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files that fit each sample, by its key, and those that fit none."""
    files = defaultdict(list)
    for path in _images(root):
        files[path.relative_to(root).with_suffix("").as_posix()].append(path)
    matches = {}
    left = {path for paths in files.values() for path in paths}
    for sample in samples:
        places = (key_of(sample), f"{sample.task}/{sample.name}", sample.name)
        fitting = [path for place in places for path in files.get(place, [])]
        matches[key_of(sample)] = fitting
        left -= set(fitting)
    return matches, sorted(left)


def _images(root: Path) -> list[Path]:
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def _faults(
    root: Path, samples: Sequence[Sample], matches: Mapping[str, list[Path]], left: list[Path]
) -> Iterator[tuple[str, list[str]]]:
    """Each kind of fault with the names it concerns."""
    yield "missing", [key for key, paths in matches.items() if not paths]
    yield "extra", [str(path.relative_to(root)) for path in left]
    yield (
        "in several places",
        [
            f"{key}: {' and '.join(str(path.relative_to(root)) for path in paths)}"
            for key, paths in matches.items()
            if len(paths) > 1
        ],
    )
    users = defaultdict(list)
    for key, paths in matches.items():
        for path in paths:
            users[path].append(key)
    shared = {path: keys for path, keys in users.items() if len(keys) > 1}
    yield (
        "one file for several samples; put it into folders by dataset and task",
        [f"{path.relative_to(root)}: {' and '.join(keys)}" for path, keys in shared.items()],
    )
    sizes = [(path, _wrong_size(path, sample)) for sample, path in _single(samples, matches)]
    yield "wrong", [f"{path.relative_to(root)}: {fault}" for path, fault in sizes if fault]


def _single(
    samples: Sequence[Sample], matches: Mapping[str, list[Path]]
) -> Iterator[tuple[Sample, Path]]:
    for sample in samples:
        paths = matches[key_of(sample)]
        if len(paths) == 1:
            yield sample, paths[0]


def _wrong_size(path: Path, sample: Sample) -> str:
    """How an output's size differs from that of its sample; nothing where it does not."""
    try:
        height, width = image_size(path, str(path))
    except BadImage:
        return "not an image"
    expected = sample.size()
    if (height, width) == expected:
        return ""
    return f"{width}x{height} instead of {expected[1]}x{expected[0]}"

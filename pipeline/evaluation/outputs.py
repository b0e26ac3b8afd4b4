"""Folders of restored images that other methods made: which file belongs to which sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datamodules.images import SUFFIXES, BadImage, image_size
from pipeline.evaluation.samples import Sample, key_of
from pipeline.evaluation.sets import few

LAYOUTS = "DATASET/TASK/NAME.png, TASK/NAME.png or NAME.png"
"""What a folder of outputs may look like; NAME is that of the degraded image."""


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

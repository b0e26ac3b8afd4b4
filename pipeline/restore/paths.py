"""Which photographs the command line names, how to restore them, and where each one goes."""

from __future__ import annotations

import functools
import glob
import os
import tempfile
import unicodedata
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.images import SUFFIXES

STDIN = "-"
BYTE_ORDER_MARK = "\ufeff"
"""What some editors put at the start of a text file."""


class BadInput(ValueError):
    """Inputs that cannot be restored as they were named; the message says which and why."""


class Settings(NamedTuple):
    """How to restore: options of `Restorer.restore_pixels`, and what is written beside."""

    degradation: str
    steps: int | None
    seed: int
    tile: int | str | None
    strength: float
    candidates: int
    compare: bool
    save_steps: bool
    format: str | None
    """A suffix without its dot; None for each photograph's own format."""

    @property
    def figures(self) -> list[str]:
        """Kinds of figures that are made of each photograph."""
        kinds = {
            "compare": self.compare,
            "steps": self.save_steps,
            "uncertainty": self.candidates > 1,
        }
        return [kind for kind, is_wanted in kinds.items() if is_wanted]


class Job(NamedTuple):
    """A photograph, and the file to restore it to."""

    source: Path
    target: Path


class Found(NamedTuple):
    """The photographs that were named."""

    jobs: list[Job]
    faults: list[str]
    """A sentence for each name that does not exist or cannot be read."""


def files_of(target: Path, candidates: int, figures: Sequence[str]) -> list[Path]:
    """All files that are written for a photograph: its candidates, of which the target is the
    first, and figures of these kinds.
    """
    further = [target.with_stem(f"{target.stem}-{n}") for n in range(2, candidates + 1)]
    return [target, *further, *(figure_of(target, kind) for kind in figures)]


def figure_of(target: Path, kind: str) -> Path:
    """The file of a figure about a restoration."""
    return target.with_name(f"{target.name}.{kind}.png")


def check_files(jobs: Sequence[Job], candidates: int, figures: Sequence[str]) -> None:
    """Refuse files that would be written twice, or over a photograph that is to be restored.

    Raises:
        BadInput: there is such a file.
    """
    sources = {_real(job.source) for job in jobs}
    writers: dict[Path, Path] = {}
    alike: dict[str, Path] = {}
    for job in jobs:
        for path in files_of(job.target, candidates, figures):
            other = writers.setdefault(path, job.source)
            if other != job.source:
                raise BadInput(f"{other} and {job.source} would both be restored to {path}")
            like = alike.setdefault(_folded(str(path)), path)
            if like != path and _is_folding(path):
                raise BadInput(
                    f"{writers[like]} and {job.source} would both be restored to {path}: this disk "
                    "does not distinguish names by case or by how accents are stored; restore them "
                    "to two folders"
                )
            if _real(path) in sources:
                raise BadInput(f"{path} would be overwritten; choose another output folder")


def place(path: Path) -> Path:
    """A file's name for comparisons: without `..` and links in its folder, but not followed itself
    where it is a link.
    """
    return _real(path.parent) / path.name


def _folded(name: str) -> str:
    """A name without the differences of case and of how accents are stored."""
    return unicodedata.normalize("NFC", name.lower())


def _is_folding(path: Path) -> bool:
    """Whether the disk of a future file does not distinguish names that fold to the same."""
    return _folds(next(folder for folder in path.absolute().parents if folder.is_dir()))


@functools.cache
def _folds(folder: Path) -> bool:
    with tempfile.NamedTemporaryFile(prefix=".probe-é-", dir=folder) as file:
        path = Path(file.name)
        others = (path.name.upper(), unicodedata.normalize("NFD", path.name))
        return any(path.with_name(other).exists() for other in others)


def find_jobs(
    inputs: Sequence[str],
    output: Path,
    suffix: str | None,
    lines: Iterable[str],
    made: Container[Path] = (),
) -> Found:
    """List the photographs to restore, each once.

    A folder's photographs keep their sub-folders; hidden files and what lies in the output
    folder are skipped, and so are files made before that patterns or `lines` name.

    Args:
        inputs: files, folders, patterns such as `scans/**/*.tif`, or `-` for names in `lines`.
        output: the folder to write to.
        suffix: of the restored files, such as `.png`; None keeps each one's.
        lines: names of files, folders or patterns, one a line.
        made: the `place` of each file that was made before.

    Raises:
        BadInput: no photograph is left, two go to one file, or one would be overwritten.
    """
    if not all(inputs):
        raise BadInput(
            "no photograph was named; type restore PHOTO --output FOLDER, or make restore "
            "INPUT=PHOTO"
        )
    jobs: dict[Path, Path] = {}
    faults: list[str] = []
    for named, is_line in _names(inputs, lines):
        if "\0" in named:
            raise BadInput(
                "names are separated by zero bytes; give one a line, as find without -print0"
            )
        if is_line and (place(Path(named)) in made or _is_same(Path(named), output)):
            continue
        found = _expanded(named, output, made)
        faults += found.faults
        for source, target in found.jobs:
            _add(jobs, source, target.with_suffix(suffix or target.suffix))
    if not jobs:
        raise BadInput("\n".join(faults) or "no photograph was named on standard input")
    return Found([Job(source, target) for target, source in jobs.items()], faults)


def _add(jobs: dict[Path, Path], source: Path, target: Path) -> None:
    other = jobs.setdefault(target, source)
    if _real(other) != _real(source):
        raise BadInput(
            f"{other} and {source} would both be restored to {target}; restore them to two folders"
        )
    if _is_same(source, target):
        raise BadInput(f"{source} would be overwritten; choose another output folder")


def _names(inputs: Sequence[str], lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The names, and whether each comes from a line."""
    for named in inputs:
        if named == STDIN:
            names = (line.removeprefix(BYTE_ORDER_MARK).rstrip("\r\n") for line in lines)
            yield from ((name, True) for name in names if name.strip())
        else:
            yield named, False


def _expanded(named: str, output: Path, made: Container[Path]) -> Found:
    """The photographs of one name, and where they go."""
    path = Path(named)
    try:
        if path.is_dir():
            return _in_folder(path, output)
        if path.exists():
            return Found([Job(path, output / path.name)], [])
        if glob.has_magic(named):
            found = sorted(Path(name) for name in glob.glob(named, recursive=True))  # noqa: PTH207
            files = [name for name in found if name.is_file() and place(name) not in made]
            jobs = [Job(name, output / name.name) for name in files]
            return Found(jobs, [] if jobs else [f"no photograph matches {named}"])
    except OSError as error:
        return Found([], [f"{named}: cannot be read ({error.strerror})"])
    return Found([], [f"there is no file or folder {named}"])


def _in_folder(folder: Path, output: Path) -> Found:
    if _is_same(folder, output):
        raise BadInput(f"{output} is the input folder; choose another output folder")
    found, faults = [], []

    def fail(error: OSError) -> None:
        faults.append(f"{error.filename}: cannot be read ({error.strerror})")

    for root, folders, names in os.walk(folder, onerror=fail):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not _is_same(here / name, output)
        )
        for name in sorted(names):
            source = here / name
            if source.suffix.lower() in SUFFIXES and not name.startswith("."):
                found.append(Job(source, output / source.relative_to(folder)))
    if not found and not faults:
        faults = [f"{folder} has no photograph ({', '.join(sorted(SUFFIXES))})"]
    return Found(found, faults)


def _real(path: Path) -> Path:
    """The file that links lead to; unlike Path.resolve, no error for circular links."""
    return Path(os.path.realpath(path))


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths are one file or folder."""
    try:
        return path.samefile(other)
    except OSError:  # one does not exist
        return False

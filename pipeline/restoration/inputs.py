"""What the command line names, as a list of photographs and where each restored one goes."""

from __future__ import annotations

import glob
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.images import SUFFIXES

STDIN = "-"


class BadInput(ValueError):
    """Inputs that cannot be restored as they were named; the message says which and why."""


class Job(NamedTuple):
    """A photograph, and the file to restore it to."""

    source: Path
    target: Path


def files_of(target: Path, candidates: int, sheets: Sequence[str]) -> list[Path]:
    """All that is written of a photograph: its candidates, of which the target is the first, and
    sheets of these kinds.
    """
    further = [target.with_stem(f"{target.stem}-{n}") for n in range(2, candidates + 1)]
    return [target, *further, *(sheet_of(target, kind) for kind in sheets)]


def sheet_of(target: Path, kind: str) -> Path:
    """The file of a picture about a restoration."""
    return target.with_name(f"{target.name}.{kind}.png")


def check_files(jobs: Sequence[Job], candidates: int, sheets: Sequence[str]) -> None:
    """Refuse what would be written twice, or over a photograph that is to be restored.

    Raises:
        BadInput: there is such a file.
    """
    sources = {job.source.resolve() for job in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs:
        for path in files_of(job.target, candidates, sheets):
            other = writers.setdefault(path, job.source)
            if other != job.source:
                raise BadInput(f"{other} and {job.source} would both be restored to {path}")
            if path.resolve() in sources:
                raise BadInput(f"{path} would be overwritten; choose another output folder")


def find_jobs(
    inputs: Sequence[str],
    output: Path,
    suffix: str | None,
    lines: Iterable[str],
    made: Container[Path] = (),
) -> list[Job]:
    """List the photographs to restore, each once.

    A folder's photographs keep their sub-folders; hidden files and what lies in the output
    folder are passed over, and what patterns and `lines` name of what was made before.

    Args:
        inputs: files, folders, patterns such as `scans/**/*.tif`, or `-` for names in `lines`.
        output: the folder to write to.
        suffix: of the restored files, such as `.png`; None keeps each one's.
        lines: names of files, folders or patterns, one a line.
        made: absolute names of files that were made before.

    Raises:
        BadInput: there is no such photograph, two go to one file, or one would be overwritten.
    """
    jobs: dict[Path, Path] = {}
    for named, is_line in _names(inputs, lines):
        if is_line and Path(named).absolute() in made:
            continue
        for source, target in _expanded(named, output, made):
            target = target.with_suffix(suffix or target.suffix)
            other = jobs.setdefault(target, source)
            if other.resolve() != source.resolve():
                raise BadInput(
                    f"{other} and {source} would both be restored to {target}; restore them to "
                    "two folders"
                )
            if target.exists() and source.exists() and target.samefile(source):
                raise BadInput(f"{source} would be overwritten; choose another output folder")
    if not jobs:
        raise BadInput("no photograph was named on standard input")
    return [Job(source, target) for target, source in jobs.items()]


def _names(inputs: Sequence[str], lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """What is named, and whether by a line."""
    for named in inputs:
        if named == STDIN:
            yield from ((line.rstrip("\r\n"), True) for line in lines if line.strip())
        else:
            yield named, False


def _expanded(named: str, output: Path, made: Container[Path]) -> list[tuple[Path, Path]]:
    """The photographs of one name, and where they go."""
    path = Path(named)
    if path.is_dir():
        return _in_folder(path, output)
    if path.exists():
        return [(path, output / path.name)]
    if glob.has_magic(named):
        found = sorted(Path(name) for name in glob.glob(named, recursive=True))  # noqa: PTH207
        if files := [name for name in found if name.is_file() and name.absolute() not in made]:
            return [(name, output / name.name) for name in files]
        raise BadInput(f"no photograph matches {named}")
    raise BadInput(f"there is no file or folder {named}")


def _in_folder(folder: Path, output: Path) -> list[tuple[Path, Path]]:
    if output.exists() and output.samefile(folder):
        raise BadInput(f"{output} is the input folder; choose another output folder")
    found = []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() != output.resolve()
        )
        for name in sorted(names):
            source = here / name
            if source.suffix.lower() in SUFFIXES and not name.startswith("."):
                found.append((source, output / source.relative_to(folder)))
    if not found:
        raise BadInput(f"{folder} has no photograph ({', '.join(sorted(SUFFIXES))})")
    return found

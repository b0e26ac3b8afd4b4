"""`restore PHOTO... --output FOLDER`: restore degraded photographs."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.frozen_imports import frozen_imports

if TYPE_CHECKING:
    from pipeline.restore.paths import Job, Settings

# Nothing heavy is imported above, so that --help and wrong arguments are answered at once.

logger = logging.getLogger(__name__)

INTERRUPTED = 130
RECORD = ".restored.jsonl"
"""In the output folder: a line for each file that was restored, and how."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that its encoding does not have
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no .part files are left
    try:
        return _run(chosen)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; run the same command again to continue\n")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (MemoryError, RuntimeError) as error:
        from modules.inference.device import is_out_of_memory
        from pipeline.errors import NO_ROOM

        if not is_out_of_memory(error):
            raise
        sys.stderr.write(f"error: {NO_ROOM}\n")
        return 1


def _run(chosen: argparse.Namespace) -> int:
    from pipeline.restore.paths import Settings, check_files, find_jobs

    settings = Settings(**{name: getattr(chosen, name) for name in Settings._fields})
    suffix = None if settings.format is None else f".{settings.format}"
    record = Record(chosen.output / RECORD, settings, chosen.model)
    jobs, faults = find_jobs(chosen.inputs, chosen.output, suffix, _lines(), record.made())
    check_files(jobs, settings.candidates, settings.figures)
    waiting = [job for job in jobs if chosen.overwrite or not record.has(job)]
    if not chosen.overwrite:
        record.check_foreign(waiting)
    for fault in faults:
        logger.error("error: %s", fault)
    done = f", {len(jobs) - len(waiting)} already done" if len(waiting) < len(jobs) else ""
    logger.info("%d photograph%s%s", len(jobs), "" if len(jobs) == 1 else "s", done)
    failed = len(faults)
    if chosen.dry_run:
        for job in waiting:
            logger.info("%s -> %s", job.source, job.target)
        return 1 if failed else 0
    if waiting:
        with frozen_imports():
            from pipeline.restore.runner import restore_all

        failed += restore_all(
            waiting,
            settings,
            chosen.model,
            chosen.device,
            lambda: record.claim(waiting),
            record.add,
        )
    if failed:
        count = len(waiting) + len(faults)
        sys.stderr.write(f"{failed} of {count} photographs were not restored, see above\n")
    return 1 if failed else 0


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  (Path's raises an error of too long a name)


def _lines() -> Iterator[str]:
    """Lines of standard input, read when needed; names may be in any encoding."""
    for line in sys.stdin.buffer:
        yield os.fsdecode(line)


class Record:
    """The files that were restored into a folder, so that the same command skips them."""

    def __init__(self, path: Path, settings: Settings, model: str | None) -> None:
        """Read the file, if any; incomplete lines are ignored."""
        self._path, self._settings = path, settings
        self._how = [model, _version(model), *settings]
        self._done: dict[str, Any] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
                self._done[entry["target"]] = entry
            except (ValueError, KeyError, TypeError):
                continue

    def made(self) -> set[Path]:
        """The `place` of each file that was made or begun, and of the record itself."""
        from pipeline.restore.paths import place

        return {place(self._path.parent / name) for name in (*self._done, self._path.name)}

    def has(self, job: Job) -> bool:
        """Whether the photograph has not changed since it was restored with these settings."""
        return _exists(job.target) and self._done.get(self._name(job.target)) == self._entry(job)

    def check_foreign(self, jobs: list[Job]) -> None:
        """Refuse to overwrite files that this command has not made.

        Raises:
            ValueError: there is such a file.
        """
        for path in self._files(jobs):
            if _exists(path) and self._name(path) not in self._done:
                raise ValueError(
                    f"{path} already exists and was not made by this command; choose another "
                    "output folder, or give --overwrite"
                )

    def claim(self, jobs: list[Job]) -> None:
        """Record which files will be made, so that those of an interrupted run are known."""
        self._write([{"target": self._name(path)} for path in self._files(jobs)])

    def add(self, job: Job) -> None:
        """Record that a photograph was restored."""
        self._write([self._entry(job)])

    def _files(self, jobs: list[Job]) -> Iterator[Path]:
        from pipeline.restore.paths import files_of

        for job in jobs:
            yield from files_of(job.target, self._settings.candidates, self._settings.figures)

    def _write(self, entries: list[dict[str, Any]]) -> None:
        # Each starts a new line, since the one before may be incomplete.
        text = "".join(f"\n{json.dumps(entry)}" for entry in entries)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {self._path}: {error.strerror}. Make room or choose a folder on "
                "another disk, then run the same command again",
            ) from error

    def _name(self, path: Path) -> str:
        return path.relative_to(self._path.parent).as_posix()

    def _entry(self, job: Job) -> dict[str, Any]:
        try:
            about = job.source.stat()
        except OSError:  # reported when the photograph is read
            return {}
        source = [str(job.source.resolve()), about.st_size, about.st_mtime_ns]
        return {"target": self._name(job.target), "source": source, "how": self._how}


def _version(model: str | None) -> list[int] | None:
    """Size and time of a local model's weights, which change with them; None of other models."""
    from pipeline.models.hub import RESTORER, SHIPPED

    folder = SHIPPED if model in (None, "shipped") else Path(str(model))
    for file in (folder / RESTORER, folder / "restorer" / "model.safetensors"):
        if file.is_file():
            return [file.stat().st_size, file.stat().st_mtime_ns]
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="restore", description=__doc__)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="PHOTO", help="file, folder, pattern, or - for names on stdin")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write")
    add(
        "-m",
        "--model",
        help="name or folder of a model; default: the one that comes with the project",
    )
    add(
        "-d",
        "--degradation",
        default="auto",
        help='auto, or the degradations to remove: rainy, "noisy:0.5,low-light"',
    )
    add("--steps", type=int, help="sampling steps an image; more take longer")
    add("--seed", type=int, default=0, help="of the noise; another seed gives another result")
    add("--tile", type=_tile, default="auto", help="side of the tiles in pixels, auto or none")
    add(
        "--strength",
        type=float,
        default=1.0,
        help="from 0, the image as it is, to 1, fully restored",
    )
    add(
        "--candidates", type=int, default=1, help="results an image, and a map of where they differ"
    )
    add(
        "--format",
        choices=["png", "jpg", "webp", "tif", "bmp"],
        help="of the restored files; default: as each photograph",
    )
    add("--compare", action="store_true", help="also write before beside after")
    add("--save-steps", action="store_true", help="also write the steps in between")
    add("--device", default="auto", help="auto, cpu, cuda, mps, or several: cuda:0,cuda:1")
    add("--overwrite", action="store_true", help="restore again, and overwrite existing files")
    add("--dry-run", action="store_true", help="show what would be done")
    return parser


def _tile(text: str) -> int | str | None:
    if text == "auto":
        return text
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not auto, none or a number") from None

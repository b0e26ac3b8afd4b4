"""What several processes have captioned so far, each in a file of its own.

A part file has one line for each finished batch. Every process reads all of them and writes one
under a new name, so no two ever write the same file and none goes on after a line that a kill cut
short. A line that is not whole, or is of other images, counts as not written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

PATTERN = "captions.part-*.jsonl"

Entry = dict[str, str]
"""A line of the caption file."""


class Parts:
    """The finished batches of all processes.

    Attributes:
        done: the entries of each batch that is finished.
    """

    def __init__(self, folder: Path, rank: int, plan: Sequence[Sequence[str]]) -> None:
        """Read what there is.

        Args:
            folder: where the part files are.
            rank: of this process; it only tells people which file is whose.
            plan: the hashes of the images of each batch.
        """
        self.done: dict[int, list[Entry]] = {}
        self._folder, self._plan = folder, plan
        self._own = folder / PATTERN.replace("*", f"{rank}-{uuid4().hex[:8]}")
        self._read: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> int:
        """Read what has been added since; how many batches are new."""
        before = len(self.done)
        for path in sorted(self._folder.glob(PATTERN)):
            with suppress(FileNotFoundError):  # rank 0 is removing them
                self._take(path)
        return len(self.done) - before

    def add(self, number: int, entries: list[Entry]) -> None:
        """Record a finished batch, where other processes see it at once.

        Raises:
            OSError: it cannot be written; what was recorded before stays.
        """
        line = json.dumps({"batch": number, "images": entries}, ensure_ascii=False)
        try:
            with self._own.open("ab") as file:
                file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {self._own}: {error.strerror}. What is captioned so far is kept; "
                "make room or set `run_dir` to another disk, then run the same command again",
            ) from error
        self.done[number] = entries

    def images(self) -> int:
        """How many images the finished batches have."""
        return sum(map(len, self.done.values()))

    def entries(self) -> list[Entry]:
        """All entries, in the order of the plan."""
        return [entry for number in sorted(self.done) for entry in self.done[number]]

    def remove_own(self) -> None:
        """Remove this process's file."""
        self._own.unlink(missing_ok=True)

    def _take(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(whole)
        for line in whole.splitlines():
            with suppress(ValueError, KeyError, TypeError, IndexError):
                self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        part = json.loads(line)
        number, entries = part["batch"], part["images"]
        if [entry["gt_sha256"] for entry in entries] == self._plan[number]:
            self.done.setdefault(number, entries)


def remove_parts(folder: Path) -> None:
    """Remove the files of all processes."""
    for path in folder.glob(PATTERN):
        path.unlink(missing_ok=True)

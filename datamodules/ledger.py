"""What several processes have finished so far, each in a file of its own.

A rank appends a line for each batch it has finished to a file under a new name at every start, so
no two ever write the same file and none goes on after a line that a kill cut short.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

Line = dict[str, Any]


class Ledger:
    """The finished batches of all ranks.

    Attributes:
        done: the lines of each batch that is finished.
    """

    def __init__(self, folder: Path, name: str, rank: int, plan: Sequence[Sequence[str]]) -> None:
        """Read what there is.

        Args:
            folder: where the files are.
            name: which each begins with.
            rank: of this process; it only tells people which file is whose.
            plan: the keys of each batch; a line of other keys counts as not written.
        """
        self.done: dict[int, list[Line]] = {}
        self._folder, self._name, self._plan = folder, name, plan
        self._own = folder / f"{name}.part-{rank}-{uuid4().hex[:8]}.jsonl"
        self._read: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> int:
        """Read what has been added since; how many batches are new."""
        before = len(self.done)
        for path in sorted(_parts(self._folder, self._name)):
            with suppress(FileNotFoundError):  # the first rank is removing them
                self._take(path)
        return len(self.done) - before

    def add(self, number: int, lines: list[Line]) -> None:
        """Record a finished batch, where other ranks see it at once.

        Raises:
            OSError: it cannot be written; what was recorded before stays.
        """
        entry = {"batch": number, "keys": list(self._plan[number]), "lines": lines}
        try:
            with self._own.open("ab") as file:
                file.write(f"{json.dumps(entry, ensure_ascii=False)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {self._own}: {error.strerror}. What is done so far is kept; make "
                "room or set `run_dir` to another disk, then run the same command again",
            ) from error
        self.done[number] = lines

    def left(self) -> list[int]:
        """The batches that nobody has finished."""
        return [number for number in range(len(self._plan)) if number not in self.done]

    def lines(self) -> list[Line]:
        """All lines, in the order of the plan."""
        return [line for number in sorted(self.done) for line in self.done[number]]

    def remove_own(self) -> None:
        """Remove this rank's file."""
        self._own.unlink(missing_ok=True)

    def _take(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(whole)
        for line in whole.splitlines():
            with suppress(ValueError, KeyError, TypeError, IndexError):
                entry = json.loads(line)
                if entry["keys"] == list(self._plan[entry["batch"]]):
                    self.done.setdefault(entry["batch"], entry["lines"])


def remove_ledgers(folder: Path, name: str) -> None:
    """Remove the files of all ranks."""
    for path in _parts(folder, name):
        path.unlink(missing_ok=True)


def _parts(folder: Path, name: str) -> Iterator[Path]:
    return folder.glob(f"{name}.part-*.jsonl")

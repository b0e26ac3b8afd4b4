"""Work shared by any number of processes, "ranks", through files in one folder and nothing else.

The work is a list of batches; batch b belongs to rank b % world. Each rank appends a line for every
batch it has finished to a part file of its own, under a new name at every start: no two processes
ever write the same file, and none continues after a line that a kill has cut short. So what any
rank has finished survives kills, whatever the number of ranks afterwards, and a batch that was done
twice counts once.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from tqdm import tqdm

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Interval at which rank 0 checks what the other ranks have finished."""

Line = dict[str, Any]
Item = TypeVar("Item")
Read = TypeVar("Read")


class WorkNotSaved(OSError):
    """Finished work that cannot be written, e.g. because the disk is full."""


def run_batches(
    target: Path,
    plan: Sequence[Sequence[Item]],
    keys: Sequence[Sequence[str]],
    read: Callable[[Sequence[Item]], Read],
    work: Callable[[Read], list[Line]],
    *,
    rank: int,
    world: int,
    title: str,
) -> list[Line]:
    """Do this rank's batches; on rank 0, then wait for the other ranks.

    A batch is read while the previous one is worked on. As soon as `target` exists, all the work is
    done: a rank that starts late stops, and removes its part file.

    Args:
        target: the file that rank 0 will make of the lines; the part files lie beside it.
        plan: the items, images, of each batch; the same on every rank.
        keys: of each batch; lines that were saved under other keys do not count.
        read: loads a batch, in a thread.
        work: does a batch and returns its lines.
        rank: number of this process.
        world: number of processes.
        title: of the progress bar, which only rank 0 shows.

    Returns:
        The lines of all finished batches, in the order of the plan; on rank 0, of every batch.

    Raises:
        WorkNotSaved: the lines of a batch cannot be written; those written before are kept.
    """
    parts = _Parts(target, rank, keys)
    with (
        ThreadPoolExecutor(1) as reader,
        tqdm(total=sum(map(len, plan)), desc=title, unit="image", disable=rank > 0) as progress,
    ):

        def update() -> None:
            parts.refresh()
            progress.update(sum(len(plan[number]) for number in parts.done) - progress.n)

        def finish(number: int, batch: Future[Read]) -> None:
            parts.add(number, work(batch.result()))
            update()

        update()
        ahead: deque[tuple[int, Future[Read]]] = deque()
        for number in [n for n in range(rank, len(plan), world) if n not in parts.done]:
            if target.is_file():
                break
            ahead.append((number, reader.submit(read, plan[number])))
            if len(ahead) > 1:
                finish(*ahead.popleft())
        while ahead and not target.is_file():
            finish(*ahead.popleft())
        if rank == 0 and len(parts.done) < len(plan):
            log.info("waiting for %d batches of other ranks", len(plan) - len(parts.done))
        while rank == 0 and len(parts.done) < len(plan):
            time.sleep(POLL_S)
            update()
    if target.is_file():  # rank 0 has removed the part files of the others
        parts.own.unlink(missing_ok=True)
    return [line for number in sorted(parts.done) for line in parts.done[number]]


def remove_parts(target: Path) -> None:
    """Remove the part files of all ranks."""
    for path in _part_files(target):
        path.unlink(missing_ok=True)


class _Parts:
    """The finished batches of all ranks: `done` holds the lines of each."""

    def __init__(self, target: Path, rank: int, keys: Sequence[Sequence[str]]) -> None:
        self.done: dict[int, list[Line]] = {}
        self.own = target.with_name(f"{target.stem}.part-{rank}-{uuid4().hex[:8]}.jsonl")
        self._target, self._keys = target, keys
        self._offsets: dict[Path, int] = {}

    def refresh(self) -> None:
        """Read what has been added."""
        for path in sorted(_part_files(self._target)):
            with suppress(FileNotFoundError):  # rank 0 is removing them
                self._take(path)

    def add(self, number: int, lines: list[Line]) -> None:
        """Save a finished batch, where other ranks see it at once."""
        entry = {"batch": number, "keys": list(self._keys[number]), "lines": lines}
        try:
            with self.own.open("ab") as file:
                file.write(f"{json.dumps(entry, ensure_ascii=False)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            said = f"cannot write {self.own}: {error.strerror}. Finished work so far is kept"
            raise WorkNotSaved(error.errno, said) from error
        self.done[number] = lines

    def _take(self, path: Path) -> None:
        offset = self._offsets.get(path, 0)
        with path.open("rb") as file:
            file.seek(offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offsets[path] = offset + len(whole)
        for line in whole.splitlines():
            with suppress(ValueError, KeyError, TypeError, IndexError):
                entry = json.loads(line)
                if entry["keys"] == list(self._keys[entry["batch"]]):
                    self.done.setdefault(entry["batch"], entry["lines"])


def _part_files(target: Path) -> Iterator[Path]:
    return target.parent.glob(f"{target.stem}.part-*.jsonl")

"""What the page does with a photograph, whose turn it is, and where results lie; no Gradio."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.files import atomic_write
from datamodules.images import BadImage, count_pixels
from modules.inference.device import is_out_of_memory
from pipeline.restore.api import Options, Progress, Restoration, Restorer
from pipeline.restore.image_io import Photograph, check_fits, encode_photograph, read_photograph
from pipeline.restore.visualize import thumbnail

PREVIEW = 1600
"""Longest side of what the page shows, in pixels; the download has the full size."""
KEPT = 55 * 60
"""Seconds until a result is deleted; the page deletes every five minutes: an hour at most."""


class Limits(NamedTuple):
    """What the page accepts."""

    megabytes: int = 40
    """Size of a file."""
    megapixels: int = 50
    """Size of a photograph, in millions of pixels."""
    minutes: float = 10
    """Longest work on one photograph."""
    waiting: int = 8
    """Most photographs that wait for their turn."""


class Refused(ValueError):
    """A photograph or an option that the page does not accept; the message is for its user."""


class Cancelled(Exception):
    """The user has cancelled the restoration."""


class Result(NamedTuple):
    """A restored photograph."""

    before: NDArray[np.uint8]
    """`[h, w, 3]`, a preview."""
    after: NDArray[np.uint8]
    """`[h, w, 3]`, a preview."""
    file: Path
    """The restored photograph in full size."""
    degradation: dict[str, float]
    """The probability of each degradation."""
    summary: str
    """What was done, for the user."""


class Turn:
    """One restoration, waiting or at work."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.is_cancelled = False

    def check(self) -> None:
        """Continue only if the restoration is still wanted.

        Raises:
            Cancelled: it is not.
        """
        if self.is_cancelled:
            raise Cancelled


class Turns:
    """Lets one restoration work at a time, in the order they come.

    Gradio's queue alone would not: it counts cancelled work as finished, although its network
    call still runs.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: list[Turn] = []
        """The first is at work."""

    @contextmanager
    def take(self, session: str, most_waiting: int) -> Iterator[Turn]:
        """Wait for a turn, and work in it.

        Raises:
            Refused: `most_waiting` already wait.
            Cancelled: while it waited.
        """
        turn = Turn(session)
        with self._changed:
            if self.waiting >= most_waiting:
                raise Refused("Too many photographs are waiting; please come back later")
            self._queue.append(turn)
        try:
            with self._changed:
                self._changed.wait_for(lambda: turn.is_cancelled or self._queue[0] is turn)
            turn.check()
            yield turn
        finally:
            with self._changed:
                self._queue.remove(turn)
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many wait, behind the one at work."""
        return max(0, len(self._queue) - 1)

    def cancel(self, session: str | None = None) -> None:
        """Cancel all turns of a session, or of all sessions."""
        with self._changed:
            for turn in self._queue:
                turn.is_cancelled |= session in (None, turn.session)
            self._changed.notify_all()


class Results:
    """The latest result of each session, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Keep them below a folder, which need not exist yet."""
        self._folder = folder
        self._lock = threading.Lock()

    def write(self, name: str, turn: Turn, data: bytes) -> Path:
        """Write a result in place of the session's previous one.

        Raises:
            Cancelled: it is not wanted any more; nothing is left of it.
        """
        folder = self._folder_of(turn.session)
        with self._lock:
            shutil.rmtree(folder, ignore_errors=True)
            with atomic_write(folder / name) as file:
                file.write(data)
                turn.check()
        return folder / name

    def delete(self, session: str) -> None:
        """Delete a session's result."""
        with self._lock:
            shutil.rmtree(self._folder_of(session), ignore_errors=True)

    def delete_old(self) -> None:
        """Delete the results that are older than KEPT."""
        oldest = time.time() - KEPT
        with self._lock, suppress(FileNotFoundError):  # the folder comes with the first result
            for folder in self._folder.iterdir():
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)

    def _folder_of(self, session: str) -> Path:
        """A session's name comes from the visitor, and could be a path; its hash could not."""
        return self._folder / hashlib.sha256(session.encode()).hexdigest()


class Service:
    """Restores photographs for the sessions of a page, one at a time."""

    def __init__(self, restorer: Restorer, folder: Path, limits: Limits) -> None:
        """Serve with a restorer; results lie below `folder` until they are deleted."""
        self.restorer, self.limits = restorer, limits
        self._turns, self._results = Turns(), Results(folder)

    @property
    def waiting(self) -> int:
        """How many photographs wait for their turn."""
        return self._turns.waiting

    def open(self, path: Path) -> Photograph:
        """Read an uploaded photograph.

        Raises:
            Refused: it is too large, or not a photograph.
        """
        megabytes = path.stat().st_size / 1e6
        if megabytes > self.limits.megabytes:
            raise Refused(
                f"{path.name} has {megabytes:.0f} MB; this page accepts "
                f"{self.limits.megabytes} MB. The restore command accepts any size"
            )
        megapixels = count_pixels(path) / 1e6
        if megapixels > self.limits.megapixels:
            raise Refused(
                f"{path.name} has {megapixels:.0f} million pixels; this page accepts "
                f"{self.limits.megapixels}. The restore command accepts more"
            )
        try:
            photograph = read_photograph(path)
            check_fits(photograph, photograph.format)
            return photograph
        except BadImage as error:
            raise Refused(str(error).replace(str(path), path.name)) from error

    def restore(
        self,
        path: Path,
        session: str,
        options: Options,
        on_progress: Callable[[int, int], None],
    ) -> Result:
        """Restore an uploaded photograph.

        Args:
            path: the upload.
            session: whose it is.
            options: how to restore it.
            on_progress: called with the number of network calls so far, and of all of them.

        Raises:
            Refused: the photograph, an option, or the time it takes is out of range, or too many
                photographs wait.
            Cancelled: the session has cancelled it.
        """
        with self._turns.take(session, self.limits.waiting) as turn:
            photograph = self.open(path)
            found = self._work(path, photograph, turn, options, on_progress)
            assert isinstance(found.image, np.ndarray)
            try:
                data, remarks = encode_photograph(photograph, found.image, photograph.format)
            except BadImage as error:
                raise Refused(f"{path.name}: {error}") from error
            tiles = f" in {found.tiles} tiles" if found.tiles > 1 else ""
            calls = "1 network call" if found.calls == 1 else f"{found.calls} network calls"
            return Result(
                before=thumbnail(photograph.pixels, PREVIEW),
                after=thumbnail(found.image, PREVIEW),
                file=self._results.write(f"{path.stem}-restored{path.suffix}", turn, data),
                degradation=found.degradation,
                summary="; ".join([f"{calls}{tiles}, {found.seconds:.1f} seconds", *remarks]),
            )

    def _work(
        self,
        path: Path,
        photograph: Photograph,
        turn: Turn,
        options: Options,
        on_progress: Callable[[int, int], None],
    ) -> Restoration:
        """Restore within the time limit, unless it is cancelled."""
        deadline = time.monotonic() + 60 * self.limits.minutes

        def on_step(progress: Progress) -> None:
            turn.check()
            if time.monotonic() > deadline:
                raise Refused(
                    f"{path.name} takes more than {self.limits.minutes:g} minutes; choose fewer "
                    "steps or a smaller photograph"
                )
            on_progress(progress.done, progress.total)

        try:
            return self.restorer.restore_pixels(photograph.pixels, on_step=on_step, **options)
        except ValueError as error:
            raise Refused(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise Refused(f"{path.name}: out of memory; choose smaller tiles") from error

    def cancel(self, session: str | None = None) -> None:
        """Cancel the restorations of a session, or of all; one at work ends its network call."""
        self._turns.cancel(session)

    def forget(self, session: str) -> None:
        """Cancel a session's restorations and delete its result."""
        self.cancel(session)
        self._results.delete(session)

    def delete_old(self) -> None:
        """Delete the results that are older than KEPT."""
        self._results.delete_old()

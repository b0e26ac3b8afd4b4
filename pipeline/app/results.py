"""Where the page's results lie until they are fetched."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from datamodules.files import atomic_write
from pipeline.app.turns import Turn

KEPT = 55 * 60
"""Seconds until a result is deleted; the page deletes every five minutes: an hour at most."""


class Results:
    """The last result of each session, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Keep them below a folder, which need not be there yet."""
        self._folder = folder
        self._lock = threading.Lock()

    def write(self, name: str, turn: Turn, data: bytes) -> Path:
        """Write a result in place of the one before.

        Raises:
            Cancelled: it is not wanted any more; nothing is left of it.
        """
        place = self._place(turn.session)
        with self._lock:
            shutil.rmtree(place, ignore_errors=True)
            with atomic_write(place / name) as file:
                file.write(data)
                turn.check()
        return place / name

    def delete(self, session: str) -> None:
        """Delete a session's result."""
        with self._lock:
            shutil.rmtree(self._place(session), ignore_errors=True)

    def sweep(self) -> None:
        """Delete the results that are older than KEPT."""
        oldest = time.time() - KEPT
        with self._lock, suppress(FileNotFoundError):  # the folder comes with the first result
            for place in self._folder.iterdir():
                if place.stat().st_mtime < oldest:
                    shutil.rmtree(place, ignore_errors=True)

    def _place(self, session: str) -> Path:
        """A session's own folder. Its name comes from the visitor, and could be a path."""
        return self._folder / hashlib.sha256(session.encode()).hexdigest()

"""Whose turn it is: one restoration at a time, which its session can cancel from the start."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 0.1
"""Seconds until one that waits looks whether it is still wanted."""


class Cancelled(Exception):
    """The user does not want it any more."""


class Turn:
    """One restoration, waiting or at work."""

    def __init__(self, session: str) -> None:
        """Not cancelled yet."""
        self.session = session
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End it at its next check."""
        self._cancelled.set()

    def check(self) -> None:
        """Go on only if it is still wanted.

        Raises:
            Cancelled: it is not.
        """
        if self._cancelled.is_set():
            raise Cancelled


class Turns:
    """Lets one restoration after the other work, whoever asks for it.

    The page's queue alone would not: it takes cancelled work for ended work, which it is not
    before its network call ends.
    """

    def __init__(self) -> None:
        """Nobody's turn yet."""
        self._lock = threading.Lock()
        self._all: set[Turn] = set()

    @contextmanager
    def take(self, session: str) -> Iterator[Turn]:
        """Wait for a turn, and work in it.

        Raises:
            Cancelled: while it waited.
        """
        turn = Turn(session)
        self._all.add(turn)
        try:
            while not self._lock.acquire(timeout=PATIENCE):
                turn.check()
            try:
                turn.check()
                yield turn
            finally:
                self._lock.release()
        finally:
            self._all.remove(turn)

    def waiting(self) -> int:
        """How many wait, behind the one at work."""
        return max(0, len(self._all) - 1)

    def cancel(self, session: str) -> None:
        """Cancel all turns of a session."""
        for turn in self._all.copy():
            if turn.session == session:
                turn.cancel()

    def cancel_all(self) -> None:
        """Cancel those of all sessions."""
        for turn in self._all.copy():
            turn.cancel()

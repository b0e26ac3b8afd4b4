"""Being asked to stop, by the signals that clusters send before they end a job.

A process that was asked leaves with status 75, which says: run the same command to resume.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

STOPPED = 75
"""Exit status of what stopped in order and is to be continued (EX_TEMPFAIL of sysexits.h)."""
NOTE = "PIPELINE_STOPPED_NOTE"
"""A variable with the file to leave instead of this status, which then is 0.

Of the ranks of a step, srun reports the highest status. When one fails, the others are asked to
stop; their status must not hide that of the one that failed.
"""
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Stopped(Exception):
    """Training stopped, because it was asked to, and has saved where it was."""


class _State:
    """What the handler shares with the work."""

    process: int = 0
    asked: bool = False
    may_finish: bool = False


_state = _State()


def listen(may_finish: bool = False) -> None:
    """Handle SIGUSR1 and SIGTERM from now on.

    Args:
        may_finish: the work looks at `stop_requested` and stops in order. Otherwise the signal ends
            the process at once, and what it has written so far is gone on from.
    """
    _state.process = os.getpid()
    _state.may_finish = may_finish
    for number in SIGNALS:
        signal.signal(number, _handle)


def stop_requested() -> bool:
    """Whether this process was asked to stop."""
    return _state.asked


def stopped_status() -> int:
    """The exit status that says: stopped in order, to be continued.

    Processes that Lightning has started leave with 0: it takes any other status for a failure and
    kills the first one, which may not be done yet.
    """
    if "RANK" not in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return 0
    if note := os.environ.get(NOTE):
        Path(note).touch()
        return 0
    return STOPPED


def _handle(number: int, frame: FrameType | None) -> None:
    """Note the request, or leave.

    Some clusters signal the children of a process too, such as the workers that load data. They
    end with the process that started them.
    """
    if os.getpid() != _state.process:
        return
    if not _state.asked:
        os.write(2, f"asked to stop by {signal.Signals(number).name}\n".encode())
    _state.asked = True
    if not _state.may_finish:
        os._exit(stopped_status())

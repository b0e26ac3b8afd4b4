"""The chain of stages: which there are, in which order, and bringing all of them up to date."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from pipeline.config import Config
from pipeline.stage import Stage, is_fresh
from pipeline.stages import captions, evaluate, shards, train_controller, train_restorer

log = logging.getLogger(__name__)

STAGES: dict[str, Stage] = {
    module.STAGE.command: module.STAGE
    for module in (shards, captions, train_controller, train_restorer, evaluate)
}
"""By command, in the order of the chain."""
FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that the process of a stage gets when this one gets them."""


def chain(config: Config, upto: str) -> list[str]:
    """The commands of a stage and of all those it needs, in order."""
    needed, waiting = set[str](), [STAGES[upto]]
    while waiting:
        stage = waiting.pop()
        needed.add(stage.command)
        waiting += stage.needs(config)
    return [command for command in STAGES if command in needed]


def run_chain(config: Config, upto: str) -> int:
    """Bring the stages up to one up to date, each that is not fresh in a process of its own.

    Returns:
        The exit status of the first that fails or stops, 0 where all are done.
    """
    for command in chain(config, upto):
        stage = STAGES[command]
        if is_fresh(stage, config):
            log.info("%s: fresh, nothing to do (%s)", stage.name, stage.folder(config))
        elif status := _run_process(command, config.overrides):
            return status
    return 0


def _run_process(command: str, overrides: Sequence[str]) -> int:
    """Run a stage, and wait for it whatever signals come: it decides how to end."""
    process = subprocess.Popen([sys.executable, "-m", "pipeline", command, *overrides])

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    # Ctrl-C in a terminal reaches the stage's process, too.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status

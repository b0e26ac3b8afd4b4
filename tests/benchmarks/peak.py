"""`python -m tests.benchmarks.peak WORK WAY`: the largest memory that work takes.

Run in a process of its own, which has nothing else in its memory; Linux only.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks.laps import Laps
from tests.benchmarks.work import Work, unet_call

STEPS = 2
"""Of training: from the second on the optimizer has its state."""


def main() -> None:
    """Do it, and write megabytes to standard output, or null where they were not to be had."""
    work, way = Work(**json.loads(sys.argv[1])), sys.argv[2]
    prepare = unet_call if work.kind.startswith("call") else _training()
    before = _megabytes("VmRSS")
    try:
        prepare(work, way)()
    except torch.OutOfMemoryError:
        found = None
    else:
        on_cpu = work.device == "cpu"
        found = _megabytes("VmHWM") - before if on_cpu else torch.cuda.max_memory_allocated() / 1e6
    json.dump(found, sys.stdout)


def _training() -> Callable[[Work, str], Callable[[], None]]:
    """What prepares training steps, with all that they import."""
    # Not above: calls of the network do without, and take less time than this.
    importlib.import_module("torch._dynamo")  # which torch imports with the first optimizer
    steps = importlib.import_module("tests.benchmarks.steps")
    return partial(_steps, steps.make_step)


def _steps(
    make_step: Callable[[Work, str], Callable[[Laps], None]], work: Work, way: str
) -> Callable[[], None]:
    step = make_step(work, way)

    def run() -> None:
        for _ in range(STEPS):
            step(Laps())

    return run


def _megabytes(entry: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kb = next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))
    return kb * 1024 / 1e6


if __name__ == "__main__":
    main()

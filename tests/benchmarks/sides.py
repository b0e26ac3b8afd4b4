"""Rows of one thing done both ways: pace and peak memory of training, memory of U-Net calls."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from tests.benchmarks.laps import Laps
from tests.benchmarks.machine import CUDA
from tests.benchmarks.steps import Step, make_step
from tests.benchmarks.table import Row, Target
from tests.benchmarks.work import WAYS, Work

log = logging.getLogger(__name__)

LESS = Target(1, at_least=False)
LINEAR = Target(4.8, at_least=False)
"""Growth of memory that twice the side adds to: four times the pixels, and a fifth more."""
ROUNDING = Target(1e-5, at_least=False)
"""Difference of two ways in float32, as a share of the largest value."""
NO_CUDA = "no CUDA device"
NO_MEMORY = "out of memory"


def step_rows(part: str, work: Work, rounds: int, faster: Target) -> list[Row]:
    """Images a second, the parts of a step, peak memory, and how far the two ways differ."""
    log.info("%s", part)
    times, differences = _train(part, work, rounds)
    rates = {way: [work.batch / laps.total for laps in times[way]] for way in WAYS}
    peaks = {way: _peak(work, way) for way in WAYS}
    return [
        *_compare(part, "pace", "images/s", rates, faster),
        *(row for way in WAYS for row in _phase_rows(part, way, times[way])),
        *_compare(part, "peak memory", "MB", peaks, LESS),
        *differences,
    ]


def _train(part: str, work: Work, rounds: int) -> tuple[dict[str, list[Laps]], list[Row]]:
    """The times of either way's steps and, in float32, how far the two differ at first."""
    times: dict[str, list[Laps]] = {way: [] for way in WAYS}
    if not _can(work):
        return times, []
    try:
        steps = {way: make_step(work, way) for way in WAYS}
        differences = [] if work.fast else difference_rows(part, steps["ours"], steps["plain"])
        return _time(steps, rounds), differences
    except torch.OutOfMemoryError:
        return times, []


def difference_rows(part: str, ours: Step, plain: Step) -> list[Row]:
    """The largest difference of outputs and loss, as shares of their largest values."""
    with torch.no_grad():
        found = {
            "loss": _difference(ours.loss(), plain.loss()),
            "outputs": _difference(ours.outputs(), plain.outputs()),
        }
    return [
        Row(part, f"largest difference: {name}", "share", [value], ROUNDING)
        for name, value in found.items()
    ]


def call_rows(part: str, work: Work, sides: tuple[int, int, int]) -> list[Row]:
    """Memory of a call at each side, and by what it grows from the first two to the next.

    From side to side what all share, such as weights, falls out: if memory is linear in the
    pixels, doubling the side twice adds four times as much the second time.
    """
    rows: list[Row] = []
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for side in sides:
        log.info("%s: %s at %d²", part, work.kind, side)
        peaks = {way: _peak(replace(work, side=side), way) for way in WAYS}
        rows += _compare(part, f"{work.kind} at {side}²", "MB", peaks, LESS)
        for way in WAYS:
            found[way].append(peaks[way])
    small, middle, large = sides
    name = f"{work.kind}: what {middle}² to {large}² adds / {small}² to {middle}²"
    for way, target in zip(WAYS, (None, LINEAR), strict=True):
        growth = [(c - b) / (b - a) for a, b, c in zip(*found[way], strict=False)]
        rows.append(Row(part, f"{way}: {name}", "x", growth, target, _reason(growth)))
    return rows


def _compare(
    part: str, name: str, unit: str, found: Mapping[str, Sequence[float]], target: Target
) -> list[Row]:
    """A row of each way, and one of their ratio, round by round."""
    ratio = _ratio(found["ours"], found["plain"])
    return [
        *(Row(part, f"{w}: {name}", unit, found[w], reason=_reason(found[w])) for w in WAYS),
        Row(part, f"ours / plain: {name}", "x", ratio, target, _reason(ratio)),
    ]


def _ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=False)]  # none where one has none


def _reason(found: Sequence[float]) -> str:
    if found:
        return ""
    return NO_MEMORY if CUDA else NO_CUDA


def _can(work: Work) -> bool:
    return CUDA or work.device == "cpu"


def _time(steps: Mapping[str, Step], rounds: int) -> dict[str, list[Laps]]:
    """Time a step of each way in turn, first the one and then the other, after one of each."""
    times: dict[str, list[Laps]] = defaultdict(list)
    for step in steps.values():
        step(Laps())
    for number in range(rounds):
        for way in WAYS if number % 2 else reversed(WAYS):
            laps = Laps()
            steps[way](laps)
            times[way].append(laps)
    return times


def _phase_rows(part: str, way: str, times: Sequence[Laps]) -> list[Row]:
    phases = times[0].seconds if times else ()
    return [
        Row(part, f"{way}: {phase}", "ms", [1000 * laps.seconds[phase] for laps in times])
        for phase in phases
    ]


def _peak(work: Work, way: str) -> list[float]:
    """Megabytes that it takes at most, in a process of its own; nothing where they are not had."""
    if not _can(work):
        return []
    command = [sys.executable, "-m", "tests.benchmarks.peak", json.dumps(asdict(work)), way]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: float | None = json.loads(output)
    return [] if found is None else [found]


def _difference(ours: Tensor, plain: Tensor) -> float:
    return float((ours - plain).abs().max() / plain.abs().max())

"""`python -m tests.benchmarks.restore [--model NAME_OR_PATH]`: what restoring costs.

How soon the first image is there, and the memory that large ones take. About three minutes on two
cores with the model that comes with the project. Linux only.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from datamodules.sources.synthetic import EmbeddedPhotos
from tests.benchmarks.machine import CUDA, load, machine
from tests.benchmarks.restoring import FULL
from tests.benchmarks.table import Row, Target, markdown, write_results

log = logging.getLogger(__name__)

FIRST, SMALL, LARGE = 256, 1024, 4096
"""Sides of the images, in pixels."""
TILE = 512
HELP = (sys.executable, "-m", "pipeline.restore", "--help")
STARTS, HELPS, PEAKS = 3, 3, 2
"""Rounds of each part."""
NOTES = (
    "first image: a fresh process loads the model and restores a file, in the model's own steps",
    f"memory: the most a process has had, from its start on, in one step in tiles of {TILE}",
    "CUDA: networks of the published size with random weights, in 8 steps",
)


def main() -> None:
    """Measure everything; log a table, and write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.restore", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench-restore"))
    parser.add_argument("--model", default="", help="as `restore --model` takes it")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    facts = machine({})
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            *start_rows(arguments.model, Path(folder)),
            *memory_rows(arguments.model, Path(folder)),
            *cuda_rows(Path(folder)),
        ]
    facts["load when it ended"] = load()
    write_results(arguments.out, "restore", rows, facts, NOTES)
    log.info("\n%s", markdown(rows))
    log.info("written to %s", arguments.out)


def start_rows(model: str, folder: Path) -> list[Row]:
    """Seconds from the start of a process to its first image, and to its help."""
    image = photograph(FIRST, folder)
    first = [_seconds(_restoring(model, image, "auto", None)) for _ in range(STARTS)]
    helps = [_seconds(HELP) for _ in range(HELPS)]
    part = "start, CUDA" if CUDA else "start, CPU"
    return [
        Row(part, f"first image, {FIRST}²", "s", first, Target(8, at_least=False)),
        Row(part, "--help", "s", helps, Target(1, at_least=False)),
    ]


def memory_rows(model: str, folder: Path) -> list[Row]:
    """Megabytes of a small and of a large image in tiles, and their ratio."""
    if CUDA:
        return []
    peaks = {
        side: [_found(model, side, folder)["peak"] for _ in range(PEAKS)] for side in (SMALL, LARGE)
    }
    ratios = [b / a for a, b in zip(peaks[SMALL], peaks[LARGE], strict=True)]
    part = f"memory, CPU, tiles of {TILE}"
    return [
        *(Row(part, f"{side}²", "MB", found) for side, found in peaks.items()),
        Row(part, f"{LARGE}² / {SMALL}²", "x", ratios, Target(1.3, at_least=False)),
    ]


def cuda_rows(folder: Path) -> list[Row]:
    """Memory and time of networks of the published size, tiled and whole."""
    rows = []
    for side, tile in ((SMALL, None), (SMALL, TILE), (LARGE, TILE)):
        found = {}
        if CUDA:
            found = _found(FULL, side, folder, tile, steps=8)
        part = f"CUDA, published size, bfloat16, {side}²"
        way = "whole" if tile is None else f"tiles of {tile}"
        least = None if tile is None else Target(6000, at_least=False)
        reason = "" if CUDA else "no CUDA device"
        peak, seconds = ([found[key]] if found else [] for key in ("peak", "seconds"))
        rows += [
            Row(part, f"memory, {way}", "MB", peak, least, reason),
            Row(part, f"time, {way}", "s", seconds, reason=reason),
        ]
    return rows


def photograph(side: int, folder: Path) -> Path:
    """A square photograph in a file."""
    path = folder / f"{side}.png"
    if not path.exists():
        [photo] = EmbeddedPhotos(["chelsea"], []).photos()
        Image.open(photo.path).resize((side, side)).save(path)
    return path


def _found(
    model: str, side: int, folder: Path, tile: int | None = TILE, steps: int = 1
) -> dict[str, float]:
    command = _restoring(model, photograph(side, folder), tile, steps)
    log.info("%s", " ".join(command[1:]))
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(output)
    return found


def _restoring(model: str, image: Path, tile: int | str | None, steps: int | None) -> list[str]:
    output = image.with_name("restored.png")
    given: Iterable[object] = (model, image, output, json.dumps(tile), json.dumps(steps))
    return [sys.executable, "-m", "tests.benchmarks.restoring", *map(str, given)]


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

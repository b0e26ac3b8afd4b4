"""What grows with a data set, or with the draws behind a run: opening, memory, going on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter

from datamodules.augment import RandomPatch
from datamodules.datamodule import Examples, Loading, Mixing, RestorationDataModule
from datamodules.shards.reader import ShardSet
from datamodules.sources.existing import ExistingShards
from tests.benchmarks.sets import TINY
from tests.benchmarks.speed import BATCH
from tests.benchmarks.table import Row, Target

SOON = Target(2, at_least=False)
FAR = 10_000_000
"""Draws after which a run goes on: about as many as the published recipe takes."""
MEMORY = {"rss": "resident (VmRSS)", "pss": "proportional (Pss)", "private": "private"}


def opening_rows(part: str, shards: Path, scratch: Path, cold: int, warm: int) -> list[Row]:
    """Seconds to open a set without its index of tar headers, and with it."""
    colds, warms = [], []
    for number in range(cold):
        folder = scratch / f"link-{number}"  # keeps an index of its own, which is not there yet
        ExistingShards(str(shards), "", 1.0, 1).link(folder)
        colds.append(_open(folder))
        warms += [_open(folder) for _ in range(warm)]
    return [
        Row(part, "open, index made anew", "s", colds),
        Row(part, "open, index there", "s", warms, SOON),
    ]


def _open(folder: Path) -> float:
    started = perf_counter()
    ShardSet(folder, "train")
    return perf_counter() - started


def memory_rows(part: str, sets: Mapping[str, Path], draws: int, rounds: int) -> list[Row]:
    """Megabytes of a process that draws from each set, by its name, with its index there."""
    for folder in sets.values():
        _open(folder)
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in sets}
    for _ in range(rounds):
        for name, folder in sets.items():
            found[name].append(_probe(folder, draws))
    return [
        row
        for name, results in found.items()
        for row in (
            *(
                Row(part, f"{name}: {text}", "MB", [result["after"][key] for result in results])
                for key, text in MEMORY.items()
            ),
            Row(part, f"{name}: private, what the data added", "MB", _grown(results)),
        )
    ]


def _probe(folder: Path, draws: int) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "tests.benchmarks.probe", str(folder), str(draws)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, dict[str, float]] = json.loads(output)
    return result


def _grown(results: Sequence[dict[str, dict[str, float]]]) -> list[float]:
    return [result["after"]["private"] - result["before"]["private"] for result in results]


def resume_rows(part: str, shards: Path, rounds: int) -> list[Row]:
    """Milliseconds from nothing to the first batch, at the first draw and after many."""
    times: dict[int, list[float]] = {0: [], FAR: []}
    _first_batch(shards, 0, seed=0)
    for number in range(rounds):
        for draws, found in times.items():
            found.append(1000 * _first_batch(shards, draws, seed=number + 1))
    return [
        Row(part, f"first batch of {BATCH} at draw {draws:,}", "ms", found)
        for draws, found in times.items()
    ]


def _first_batch(shards: Path, draws: int, seed: int) -> float:
    """Seconds; under a seed never used before, no order of samples is in a cache."""
    started = perf_counter()
    data = RestorationDataModule(
        shards,
        Examples(RandomPatch(TINY), with_clean=True),
        Loading(BATCH, val_batch_size=1, val_images_per_task=None, num_workers=0),
        Mixing(seed, task_weights={}, max_skipped_fraction=0.0),
    )
    data.load_state_dict({"draws": draws, "skipped": 0, "drawn": {}})
    next(iter(data.train_dataloader()))
    return perf_counter() - started


def streaming_rows(part: str, shards: Path, skipped: int, rounds: int) -> list[Row]:
    """What skipping costs a stream by the webdataset package, which has to read what it skips."""
    times = [_skip(shards, skipped) for _ in range(rounds)]
    hours = [seconds * FAR / 3600 for seconds in times]
    return [
        Row(part, "stream: a skipped sample, not decoded", "ms", [1000 * t for t in times]),
        Row(part, f"stream: going on at draw {FAR:,}, extrapolated", "h", hours),
    ]


def _skip(shards: Path, count: int) -> float:
    """Seconds a sample."""
    import webdataset

    tars = sorted(map(str, shards.glob("*.tar")))
    stream = webdataset.WebDataset(tars, shardshuffle=False).repeat()
    started = perf_counter()
    for _ in islice(stream, count):
        pass
    return (perf_counter() - started) / count

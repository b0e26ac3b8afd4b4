"""Samples a second from files to a batch of floats with CLIP's view: the plain way, and ours."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch.utils.data import DataLoader

from datamodules.augment import RandomPatch
from datamodules.batch import Batch, IndexedSample, Sample, collate
from datamodules.dataset import TrainDataset
from datamodules.mixture import Mixture, TrainSampler
from datamodules.shards.reader import ShardSet
from datamodules.sources.base import FilePair
from modules.clip.preprocess import clip_preprocess
from tests.benchmarks.baseline import load_batch
from tests.benchmarks.laps import Laps
from tests.benchmarks.machine import CUDA
from tests.benchmarks.sets import ENCODINGS, FLY_WORDS
from tests.benchmarks.table import Row, Target

log = logging.getLogger(__name__)

BATCH = 16
PATCH = 256
VIEW = 224
WORKERS = 2
PREFETCHED = 4 * WORKERS
"""Batches after which a loader's pace is its own: two for each worker wait when it starts."""
DEVICE = torch.device("cuda" if CUDA else "cpu")
FASTER = Target(4, at_least=True)


def open_draws(
    folder: Path, words: Iterable[str] | None = None, patch: int = PATCH, seed: int = 0
) -> TrainDataset:
    """The training draws of a folder of shards, of some words or of all."""
    shards = ShardSet(folder, "train")
    counts = {word: samples.counts for word, samples in shards.tasks.items()}
    wanted = set(counts if words is None else words)
    mixture = Mixture(counts, seed, {word: int(word in wanted) for word in counts})
    return TrainDataset(shards, None, mixture, RandomPatch(patch), with_clean=True)


class Speeds:
    """Milliseconds a sample of each way, round by round, over the same files."""

    def __init__(self, pairs: Sequence[FilePair], folder: Path, batches: int) -> None:
        """Time `batches` batches of each way, per round, of pairs and their shards."""
        self._pairs, self._batches = pairs, batches
        self._rng = np.random.default_rng(0)
        self._draws = {encoding: open_draws(folder / encoding) for encoding in ENCODINGS}
        self._fly = {word: open_draws(folder / "clean", [word]) for word in FLY_WORDS}
        self.ms: dict[str, list[float]] = defaultdict(list)

    def round(self, number: int) -> None:
        """Time each way once, on draws that no other round has seen."""
        first = number * self._batches * BATCH
        draws = [range(n, n + BATCH) for n in range(first, first + self._batches * BATCH, BATCH)]
        self._plain(draws)
        for encoding, dataset in self._draws.items():
            self._ours(encoding, dataset, draws)
        for word, dataset in self._fly.items():
            self._add(f"{word} on the fly", _time_loading(dataset, draws))
        self._steps(draws)
        self._loader(first)

    def _plain(self, draws: Sequence[range]) -> None:
        laps = Laps()
        for batch in draws:
            pairs = [self._pairs[n % len(self._pairs)] for n in batch]
            load_batch(pairs, PATCH, VIEW, self._rng, laps)
        self._add("plain", laps.total)
        for step, seconds in laps.seconds.items():
            self._add(f"plain: {step}", seconds)

    def _ours(self, encoding: str, dataset: TrainDataset, draws: Sequence[range]) -> None:
        laps = Laps()
        for batch in draws:
            loaded = _load(dataset, batch)
            laps("loading")
            _finish(loaded)
            laps("device")
        self._add(f"ours, {encoding}", laps.total)
        for step, seconds in laps.seconds.items():
            self._add(f"ours, {encoding}: {step}", seconds)

    def _steps(self, draws: Sequence[range]) -> None:
        """Where our time goes, step by step."""
        laps = Laps()
        for batch in draws:
            items = [trace(self._draws["npy"], n, laps) for n in batch]
            loaded = _pin(collate(items))
            laps("collate")
            _finish(loaded, laps)
        for step, seconds in laps.seconds.items():
            self._add(f"step: {step}", seconds)

    def _loader(self, first: int) -> None:
        """Batches from worker processes, and the same with the device's work between them."""
        loader = DataLoader(
            self._draws["npy"],
            batch_size=BATCH,
            sampler=TrainSampler(first, 0, 1),
            num_workers=WORKERS,
            collate_fn=collate,
            pin_memory=CUDA,
        )
        batches = iter(loader)
        for name, work in (("loading", _pass), ("with device", _finish)):
            for batch in islice(batches, PREFETCHED):
                work(batch)
            started = perf_counter()
            for batch in islice(batches, 4 * self._batches):
                work(batch)
            self._add(f"loader: {name}", (perf_counter() - started) / 4)

    def _add(self, name: str, seconds: float) -> None:
        self.ms[name].append(seconds * 1000 / (self._batches * BATCH))


def _load(dataset: TrainDataset, draws: range) -> Batch:
    """What a worker does."""
    return _pin(collate([dataset[n] for n in draws]))


def _pin(batch: Batch) -> Batch:
    if not CUDA:
        return batch
    return batch._replace(lq=batch.lq.pin_memory(), gt=batch.gt.pin_memory())


def _pass(batch: Batch) -> None:
    """Nothing: the batch is there."""


def _finish(batch: Batch, laps: Laps | None = None) -> None:
    """What the device does: 8 bit to floats of both images, and CLIP's view of the degraded."""
    laps = laps or Laps()
    lq, _ = (x.to(DEVICE, non_blocking=True).float() / 255 for x in (batch.lq, batch.gt))
    laps("to float")
    clip_preprocess(lq, VIEW)
    if CUDA:
        torch.cuda.synchronize()
    laps("CLIP view")


def _time_loading(dataset: TrainDataset, draws: Sequence[range]) -> float:
    started = perf_counter()
    for batch in draws:
        _load(dataset, batch)
    return perf_counter() - started


def trace(dataset: TrainDataset, n: int, laps: Laps) -> IndexedSample:
    """Draw n, taken apart into its steps."""
    word, position = dataset.mixture(n)
    rng = dataset.mixture.rng(n)
    laps("draw")
    with dataset.shards.tasks[word][position].open() as stored:
        metadata, name = stored.metadata(), stored.name
        laps("open, name, json")
        size = stored.size("lq")
        stored.size("gt")
        view = dataset.augment(*size, rng)
        laps("sizes and window")
        lq, gt = stored.pixels("lq", view.window), stored.pixels("gt", view.window)
        laps("read and cut")
        lq, gt = view.orient(lq), view.orient(gt)
        laps("orient")
    return IndexedSample(Sample(lq, gt, "", word, metadata["source"], name), n, True, ())


def speed_rows(part: str, speeds: Speeds) -> list[Row]:
    """Samples a second, the ratio to the plain way, and milliseconds of each step."""
    ms = speeds.ms
    per_core, in_all = "samples/s per core", "samples/s in all"

    def rate(name: str, key: str, unit: str = per_core) -> Row:
        return Row(part, name, unit, [1000 / x for x in ms[key]])

    def ratio(encoding: str, target: Target | None) -> Row:
        times = zip(ms["plain"], ms[f"ours, {encoding}"], strict=True)
        return Row(part, f"ours / plain, {encoding}", "x", [a / b for a, b in times], target)

    return [
        rate("plain", "plain"),
        rate("ours, npy", "ours, npy"),
        ratio("npy", FASTER),
        rate("ours, npy: loading only (a worker)", "ours, npy: loading"),
        rate("ours, npy: floats and CLIP view only (the device)", "ours, npy: device"),
        rate("ours, png", "ours, png"),
        ratio("png", None),
        rate("ours, png: loading only (a worker)", "ours, png: loading"),
        *(
            rate(f"ours, {word} on the fly: loading only", f"{word} on the fly")
            for word in FLY_WORDS
        ),
        rate(f"ours, npy, {WORKERS} workers: loading only", "loader: loading", in_all),
        rate(f"ours, npy, {WORKERS} workers: CLIP view too", "loader: with device", in_all),
        *(
            Row(part, f"{way}: {key.partition(': ')[2]}", "ms/sample", ms[key])
            for start, way in (("plain: ", "step of plain"), ("step: ", "step of ours, npy"))
            for key in ms
            if key.startswith(start)
        ),
    ]

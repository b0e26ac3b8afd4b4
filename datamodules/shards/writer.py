"""Shards: plain WebDataset tars of samples, with an index that says what each must hold.

A sample is `KEY.lq.EXT`, `KEY.gt.EXT` and `KEY.json`; without `lq` it is a clean image that
training degrades. EXT is `npy`, three bytes a pixel, from which a crop is read without decoding the
rest, or `png`. Shards are named `WORD-SPLIT-000000.tar`, so that no two share a name in any cache.
They appear whole or not at all, and the index, `index.json`, comes last.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import groupby
from multiprocessing import connection, get_context, parent_process
from operator import attrgetter
from pathlib import Path

import cv2
from tqdm import tqdm

from datamodules.errors import FormatError, TooManyBadPairs
from datamodules.files import atomic_write, file_hash, read_json, remove_partial, write_json
from datamodules.images import ENCODERS, BadImage, Pixels, content_hash
from datamodules.shards.index import INDEX, Shard
from datamodules.sources.base import PlannedSample

CLEAN = "clean"
"""Instead of the word, in the name of a shard whose images serve several words."""


@dataclass(frozen=True)
class Format:
    """How samples are stored.

    Attributes:
        encoding: of training images, a key of ENCODERS; validation images are PNG.
        tile_size: training images with a longer side are cut into tiles of at most this side, in
            pixels;
            None keeps them whole. Validation images stay whole.
        shard_mb: about how many megabytes of pixels a shard holds.
    """

    encoding: str
    tile_size: int | None
    shard_mb: float

    def __post_init__(self) -> None:
        """Check the values."""
        if self.encoding not in ENCODERS:
            known = ", ".join(ENCODERS)
            raise FormatError(f"encoding={self.encoding!r}; choose one of: {known}")
        if self.shard_mb <= 0:
            raise FormatError(f"shard_mb={self.shard_mb}; give more than 0")
        if self.tile_size is not None and self.tile_size < 32:
            raise FormatError(f"tile_size={self.tile_size}; tiles have at least 32 pixels a side")


def write_shards(
    samples: Sequence[PlannedSample],
    directory: Path,
    form: Format,
    max_skipped_fraction: float,
    num_workers: int,
) -> list[Shard]:
    """Make all samples and write them as shards; those that are there already are kept.

    A small `.json` file beside each shard marks it as finished. A training
    sample that cannot be made is left out and recorded; a validation sample is an error.
    `num_workers` is the number of processes besides this one; 0 does it all in this one.

    Raises:
        BadImage: a validation sample cannot be made.
        TooManyBadPairs: more than this share of the training samples was left out.
        OSError: a shard cannot be written, or a process that made one was killed.
        ValueError: there is no sample, or two have the same key.
    """
    _check_plan(samples)
    remove_partial(directory)
    most = max_skipped_fraction * sum(sample.split == "train" for sample in samples)
    jobs = _plan_shards(samples, form.shard_mb * 1e6)
    shards: dict[str, Shard] = {}
    with tqdm(total=len(samples), desc="shards", unit="pair") as progress:
        for name, shard in _finish_shards(directory, jobs, form, num_workers):
            shards[name] = shard
            progress.update(len(jobs[name]))
            _check_skipped(shards.values(), most)
    result = [shards[name] for name in jobs]
    write_json(directory / INDEX, {"shards": [asdict(shard) for shard in result]})
    return result


def tiles(height: int, width: int, tile: int) -> list[tuple[slice, slice]]:
    """Cut an image into the fewest tiles of at most `tile` pixels a side, all about equally large.

    Returns:
        Rows and columns of each tile; together they cover every pixel once.
    """
    return [
        (slice(top, bottom), slice(left, right))
        for top, bottom in _cuts(height, tile)
        for left, right in _cuts(width, tile)
    ]


def _cuts(length: int, longest: int) -> list[tuple[int, int]]:
    count = -(-length // longest)
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def _plan_shards(
    samples: Sequence[PlannedSample], shard_bytes: float
) -> dict[str, list[PlannedSample]]:
    """The samples of each shard: of one task or one set of tasks, about equally many bytes."""

    def task(sample: PlannedSample) -> tuple[str, tuple[str, ...]]:
        return sample.split, sample.words

    ordered = sorted(samples, key=task)  # stable within a task
    with ThreadPoolExecutor(16) as pool:  # headers on a network file system take their time
        pixels = pool.map(attrgetter("pixels"), ordered)
        sizes = [3 * n for n in tqdm(pixels, "sizes", len(ordered), unit="pair")]
    jobs: dict[str, list[PlannedSample]] = {}
    number: Counter[str] = Counter()
    for (split, words), group in groupby(zip(ordered, sizes, strict=True), lambda s: task(s[0])):
        label = f"{words[0] if len(words) == 1 else CLEAN}-{split}"
        filled = math.inf
        for sample, size in group:
            if filled + size > shard_bytes:
                name, filled = f"{label}-{number[label]:06d}.tar", 0.0
                number[label] += 1
                jobs[name] = []
            jobs[name].append(sample)
            filled += size
    return jobs


def _check_plan(samples: Sequence[PlannedSample]) -> None:
    if not samples:
        raise ValueError("there is nothing to write: the source has no sample")
    seen: set[tuple[str, tuple[str, ...], str]] = set()
    for sample in samples:
        if (name := (sample.split, sample.words, sample.key)) in seen:
            raise ValueError(f"two samples have the key {name}; rename {sample.source}")
        seen.add(name)


def _finish_shards(
    directory: Path, jobs: Mapping[str, Sequence[PlannedSample]], form: Format, num_workers: int
) -> Iterator[tuple[str, Shard]]:
    """Yield shards as they are finished, by this process or by `workers` others."""
    if num_workers == 0:
        for name, samples in jobs.items():
            yield name, _finish_shard(directory / name, samples, form)
        return
    with ProcessPoolExecutor(num_workers, get_context("spawn"), _prepare_process) as pool:
        futures = {
            pool.submit(_finish_shard, directory / name, samples, form): name
            for name, samples in jobs.items()
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a process that made shards was killed, perhaps for lack of memory: lower "
                "`num_workers` and run the same command to resume"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare_process() -> None:
    """Use one thread, and end when the parent is gone, killed perhaps; else it would stay."""
    cv2.setNumThreads(1)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finish_shard(path: Path, samples: Sequence[PlannedSample], form: Format) -> Shard:
    """Write one shard, or take what an interrupted run has finished."""
    sidecar = path.with_suffix(".json")
    if path.is_file() and sidecar.is_file():
        finished = Shard(**read_json(sidecar))
        if path.stat().st_size == finished.bytes:
            return finished
    shard = _write_shard(path, samples, form)
    write_json(sidecar, asdict(shard))
    return shard


def _write_shard(path: Path, samples: Sequence[PlannedSample], form: Format) -> Shard:
    import webdataset  # here, because it imports torch, which stages that are fresh do without

    skipped: list[str] = []
    count = 0
    # No times, owners or compression: the same samples give the same bytes.
    plain = {"mtime": 0, "user": "root", "group": "root"}
    with atomic_write(path) as file, webdataset.TarWriter(file, **plain) as writer:
        for sample in samples:
            try:
                lq, gt = sample.make()
            except BadImage as error:
                if sample.split != "train":
                    raise
                skipped.append(f"{'+'.join(sample.words)}/{sample.key}: {error}")
                continue
            for members in _members(sample, lq, gt, form):
                writer.write(members)
                count += 1
    return Shard(
        name=path.name,
        words=list(samples[0].words),
        split=samples[0].split,
        count=count,
        bytes=path.stat().st_size,
        sha256=file_hash(path),
        skipped=skipped,
    )


def _members(
    sample: PlannedSample, lq: Pixels | None, gt: Pixels, form: Format
) -> Iterator[dict[str, object]]:
    """The files of a sample, or of each of its tiles."""
    train = sample.split == "train"
    encoding = form.encoding if train else "png"
    encode = ENCODERS[encoding]
    height, width = gt.shape[:2]
    windows = tiles(
        height, width, form.tile_size if train and form.tile_size else max(height, width)
    )
    for number, (rows, columns) in enumerate(windows):
        clean = gt[rows, columns]
        metadata = {
            "words": sample.words,
            "split": sample.split,
            "source": sample.source,
            "gt_sha256": content_hash(clean),
        }
        key = sample.key if len(windows) == 1 else f"{sample.key}-{number:03d}"
        degraded = {} if lq is None else {f"lq.{encoding}": encode(lq[rows, columns])}
        yield {"__key__": key} | degraded | {f"gt.{encoding}": encode(clean), "json": metadata}


def _check_skipped(shards: Iterable[Shard], most: float) -> None:
    skipped = [line for shard in shards for line in shard.skipped]
    if len(skipped) > most:
        shown = "\n  ".join(skipped[:10])
        raise TooManyBadPairs(
            f"{len(skipped)} training pairs so far cannot be used, more than the {int(most)} "
            f"allowed. The first ones:\n  {shown}"
        )

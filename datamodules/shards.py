"""Shards: plain WebDataset tars of pairs, with an index that says what each must hold.

A sample is three members, `KEY.lq.png`, `KEY.gt.png` and `KEY.json`. Shards are named
`WORD-SPLIT-000000.tar`, so that no two share a name in any cache. They appear whole or not at
all, and the index, `index.json`, comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from datamodules.files import atomic_write, file_hash, read_json, write_json
from datamodules.images import BadImage, content_hash, encode_png
from datamodules.pairs import PlannedPair

INDEX = "index.json"


@dataclass(frozen=True)
class Shard:
    """What the index says of one shard."""

    name: str
    word: str
    split: str
    count: int
    bytes: int
    sha256: str
    skipped: list[str]
    """Pairs left out while it was made, each with the reason."""


class BadShard(ValueError):
    """A shard that is not what the index says; the message names it."""


class TooManyBadPairs(ValueError):
    """More pairs had to be left out than the configuration allows."""


def write_shards(
    pairs: Sequence[PlannedPair],
    directory: Path,
    samples_per_shard: int,
    max_skipped_share: float,
    workers: int,
) -> list[Shard]:
    """Make all pairs and write them as shards; what an earlier run finished is kept.

    A training pair that cannot be made is left out and recorded; a validation pair is an error.
    `workers` is the number of processes besides this one; 0 does it all in this one.

    Raises:
        BadImage: a validation pair cannot be made.
        TooManyBadPairs: more than this share of the training pairs was left out.
        OSError: a shard cannot be written.
    """
    jobs = _plan_shards(pairs, samples_per_shard)
    shards: dict[str, Shard] = {}
    with tqdm(total=len(pairs), desc="shards", unit="pair") as progress:
        for name, shard in _finish_shards(directory, jobs, workers):
            shards[name] = shard
            progress.update(len(jobs[name]))
    result = [shards[name] for name in jobs]
    _check_skipped(result, len(pairs), max_skipped_share)
    write_json(directory / INDEX, {"shards": [asdict(shard) for shard in result]})
    for name in jobs:
        _sidecar(directory / name).unlink()
    return result


def read_index(directory: Path) -> list[Shard]:
    """The shards of a directory.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: the index is damaged.
    """
    path = directory / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"no shard index {path}; run `make shards` first")
    try:
        return [Shard(**entry) for entry in read_json(path)["shards"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a shard index ({error}); run `make shards`") from error


def _plan_shards(
    pairs: Sequence[PlannedPair], samples_per_shard: int
) -> dict[str, list[PlannedPair]]:
    jobs: dict[str, list[PlannedPair]] = {}
    ordered = sorted(pairs, key=lambda pair: (pair.split, pair.word))  # stable within a task
    for (split, word), group in groupby(ordered, key=lambda pair: (pair.split, pair.word)):
        members = list(group)
        for number, start in enumerate(range(0, len(members), samples_per_shard)):
            chunk = members[start : start + samples_per_shard]
            jobs[f"{word}-{split}-{number:06d}.tar"] = chunk
    return jobs


def _finish_shards(
    directory: Path, jobs: Mapping[str, Sequence[PlannedPair]], workers: int
) -> Iterator[tuple[str, Shard]]:
    """Yield shards as they are finished, by this process or by `workers` others."""
    if workers == 0:
        for name, pairs in jobs.items():
            yield name, _finish_shard(directory / name, pairs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(_finish_shard, directory / name, pairs): name
            for name, pairs in jobs.items()
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _finish_shard(path: Path, pairs: Sequence[PlannedPair]) -> Shard:
    """Write one shard, or take what an interrupted run has finished."""
    sidecar = _sidecar(path)
    if path.is_file() and sidecar.is_file():
        return Shard(**read_json(sidecar))
    shard = _write_shard(path, pairs)
    write_json(sidecar, asdict(shard))
    return shard


def _write_shard(path: Path, pairs: Sequence[PlannedPair]) -> Shard:
    import webdataset  # here, because it imports torch, which stages that are fresh do without

    skipped: list[str] = []
    with atomic_write(path) as file:
        # No times, owners or compression: the same pairs give the same bytes.
        writer = webdataset.TarWriter(file, mtime=0, user="root", group="root")
        for pair in pairs:
            try:
                writer.write(_members(pair))
            except BadImage as error:
                if pair.split != "train":
                    raise
                skipped.append(f"{pair.word}/{pair.key}: {error}")
        writer.close()
    return Shard(
        name=path.name,
        word=pairs[0].word,
        split=pairs[0].split,
        count=len(pairs) - len(skipped),
        bytes=path.stat().st_size,
        sha256=file_hash(path),
        skipped=skipped,
    )


def _members(pair: PlannedPair) -> dict[str, object]:
    lq, gt = pair.make()
    origin = {
        "word": pair.word,
        "split": pair.split,
        "source": pair.source,
        "gt_sha256": content_hash(gt),
    }
    return {
        "__key__": pair.key,
        "lq.png": encode_png(lq),
        "gt.png": encode_png(gt),
        "json": origin,
    }


def _check_skipped(shards: Sequence[Shard], pairs: int, max_share: float) -> None:
    skipped = [line for shard in shards for line in shard.skipped]
    if len(skipped) > max_share * pairs:
        shown = "\n  ".join(skipped[:10])
        raise TooManyBadPairs(
            f"{len(skipped)} of {pairs} pairs cannot be used, more than the share "
            f"shards.max_skipped_share={max_share} allows. The first ones:\n  {shown}"
        )


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")

"""Where the files of each sample lie in a shard, by the headers of its tar."""

from __future__ import annotations

import hashlib
import io
import logging
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from datamodules.files import atomic_write
from datamodules.images import SUFFIXES
from datamodules.shards.index import BadShard, Shard

log = logging.getLogger(__name__)

KINDS = ("", "npy", *sorted(suffix[1:] for suffix in SUFFIXES))
"""Encodings of images by their number in a table; 0 for what is no image or not there."""
_MEMBER = np.dtype([("offset", "<i8"), ("size", "<i8"), ("kind", "u1")])
ROW = np.dtype([("lq", _MEMBER), ("gt", _MEMBER), ("json", _MEMBER)])
Table = NDArray[np.void]
"""`[samples]` of ROW: offset and size in bytes of each file; an absent `lq` has kind 0."""


def index_tar(path: Path, expected: Shard) -> Table:
    """The table of one shard, from its tar headers alone.

    Raises:
        BadShard: it is missing, is truncated, or does not hold what the index says.
    """
    check_size(path, expected)
    samples: dict[str, dict[str, tuple[int, int, int]]] = {}
    last = ""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, field = member.name.partition(".")
                if key != last and key in samples:
                    raise BadShard(
                        f"{path}: the files of sample {key} are not adjacent in the tar file"
                    )
                name, kind = _field(field)
                if name in samples.setdefault(key, {}):
                    raise BadShard(f"{path}: sample {key} has two files {name}")
                samples[key][name] = (member.offset_data, member.size, kind)
                last = key
    except (tarfile.TarError, OSError) as error:
        raise BadShard(f"{path}: not a whole tar ({error})") from error
    return _table(path, samples, expected)


def _field(field: str) -> tuple[str, int]:
    """`lq`, `gt`, `json` or another name, and the number of its encoding."""
    name, _, suffix = field.partition(".")
    image = name in {"lq", "gt"} and suffix in KINDS
    return (name, KINDS.index(suffix)) if image else (field, 0)


def _table(
    path: Path, samples: dict[str, dict[str, tuple[int, int, int]]], expected: Shard
) -> Table:
    paired = any("lq" in fields for fields in samples.values())
    needed = {"gt", "json"} | ({"lq"} if paired else set())
    for key, fields in samples.items():
        if missing := needed - set(fields):
            raise BadShard(
                f"{path}: sample {key} has no {', '.join(sorted(missing))}; files are named "
                "KEY.lq.EXT, KEY.gt.EXT and KEY.json, with a KEY without dots"
            )
    if len(samples) != expected.count:
        raise BadShard(f"{path}: holds {len(samples)} samples, the index says {expected.count}")
    table = np.zeros(len(samples), ROW)
    for name in ROW.names or ():
        table[name] = [fields.get(name, (0, 0, 0)) for fields in samples.values()]
    return table


def check_size(path: Path, expected: Shard) -> int:
    """Check that a shard is there and as long as the index says.

    Returns:
        When it was last changed, in nanoseconds.

    Raises:
        BadShard: it is missing or has another size.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise BadShard(f"{path}: missing, though the index lists it ({error.strerror})") from error
    if stat.st_size != expected.bytes:
        raise BadShard(f"{path}: {stat.st_size} bytes, the index says {expected.bytes}")
    return stat.st_mtime_ns


def index_all_tars(
    folder: Path, shards: Sequence[Shard], times: Sequence[int], cache: Path
) -> Table:
    """The tables of all shards, one after the other, mapped into memory from a file in `cache`.

    The file is made when it is missing or when a shard has changed since; where it cannot be
    written the table stays in memory.

    Raises:
        BadShard: a shard does not hold what the index says.
    """
    identity = [(s.name, s.sha256, time) for s, time in zip(shards, times, strict=True)]
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    file = cache / f"headers-{digest}.npy"
    mapped = _map_table(file, sum(shard.count for shard in shards))
    if mapped is not None:
        return mapped
    with ThreadPoolExecutor(8) as pool:
        tables = pool.map(lambda s: index_tar(folder / s.name, s), shards)
        found = list(tqdm(tables, "index", len(shards), unit="shard", disable=len(shards) < 50))
    table = np.concatenate(found) if found else np.zeros(0, ROW)
    try:
        _write_table(file, table)
    except OSError as error:
        log.warning("%s; the shards are indexed again each time", error)
    mapped = _map_table(file, len(table))
    return table if mapped is None else mapped


def _map_table(file: Path, samples: int) -> Table | None:
    """A table mapped into memory; None where there is none of that many samples, or a damaged."""
    try:
        table: Table = np.load(file, mmap_mode="r")
    except OSError:
        return None
    except Exception as error:  # NumPy has many kinds for a damaged file
        log.warning("%s is damaged (%s); it is made again", file, error)
        return None
    return table if table.dtype == ROW and table.shape == (samples,) else None


def _write_table(file: Path, table: Table) -> None:
    former = list(file.parent.glob("headers-*.npy"))
    buffer = io.BytesIO()
    np.save(buffer, table)
    with atomic_write(file) as written:
        written.write(buffer.getvalue())
    for path in former:
        if path != file:
            path.unlink(missing_ok=True)

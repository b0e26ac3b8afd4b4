"""Checking shards against their index: every fault by name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from datamodules.files import file_hash
from datamodules.shards.index import BadShard, Shard, read_index
from datamodules.shards.store import ShardLocation, read_link
from datamodules.shards.tar_index import check_size, index_tar


def verify_shards(directory: Path, num_workers: int) -> Iterator[str]:
    """Every fault of a set of shards: missing, of another size or content, badly built, unlisted.

    Args:
        directory: the folder with the index.
        num_workers: how many shards are read at once.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: the index is damaged.
    """
    shards, link = read_index(directory), read_link(directory)
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        faults = pool.map(partial(_fault_of, link), shards)
        yield from (line for line in tqdm(faults, "verify", len(shards), unit="shard") if line)
    if not link.remote:
        listed = {shard.name for shard in shards}
        strangers = sorted(p for p in Path(link.url).glob("*.tar") if p.name not in listed)
        yield from (f"{path}: not in the index" for path in strangers)


def _fault_of(link: ShardLocation, shard: Shard) -> str | None:
    try:
        if link.remote:
            path = link.cache().path(shard.name, shard.bytes, shard.sha256)
        else:
            path = Path(link.url) / shard.name
            check_size(path, shard)
            if (found := file_hash(path)) != shard.sha256:
                return f"{path}: its SHA-256 is {found}, the index says {shard.sha256}"
        index_tar(path, shard)
    except (BadShard, OSError, ValueError) as error:
        return str(error)
    return None

"""Where shards are read from: a folder, or a URL through a cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np

from datamodules.files import read_json
from datamodules.shards.cache import ShardCache
from datamodules.shards.index import BadShard, Shard, read_index
from datamodules.shards.tar_index import Table, check_size, index_all_tars, index_tar

T = TypeVar("T")

LINK = "link.json"
"""In a folder with an index: where its shards lie, if not there."""


class ShardStore(Protocol):
    """Where shards are read from; they go by their number in the index."""

    shards: Sequence[Shard]
    window: int | None
    """How many shards of a task may be in use at once; None for all."""

    def table(self, number: int) -> Table:
        """Where each sample lies in a shard."""
        ...

    def open(self, number: int) -> BinaryIO:
        """A shard's file.

        Raises:
            BadShard: it is gone or not what it was when its table was made.
        """
        ...

    def prefetch(self, number: int) -> None:
        """Fetch a shard that will be used soon."""
        ...


class LocalShards:
    """Shards in a folder, of a local disk or a network file system."""

    window: int | None = None

    def __init__(self, folder: Path, shards: Sequence[Shard], cache: Path) -> None:
        """Index shards; the index is kept in `cache`.

        Raises:
            BadShard: one is not what the index says.
        """
        self.folder, self.shards = folder, shards
        self._times = [check_size(folder / shard.name, shard) for shard in shards]
        self._rows = index_all_tars(folder, shards, self._times, cache)
        self._starts = np.cumsum([0, *(shard.count for shard in shards)])

    def table(self, number: int) -> Table:
        """A view of the table of all shards."""
        part: Table = self._rows[self._starts[number] : self._starts[number + 1]]
        return part

    def open(self, number: int) -> BinaryIO:
        """A shard's file, if nobody has touched it since it was indexed."""
        path = self.folder / self.shards[number].name
        try:
            file = path.open("rb", buffering=0)
        except OSError as error:
            raise BadShard(f"{path}: cannot be read ({error.strerror})") from error
        if os.fstat(file.fileno()).st_mtime_ns != self._times[number]:
            file.close()
            raise BadShard(f"{path}: was replaced or changed since it was opened; start again")
        return file

    def prefetch(self, number: int) -> None:
        """Nothing to do."""


class RemoteShards:
    """Shards behind a URL or command, fetched into a bounded local cache when they are needed."""

    def __init__(self, cache: ShardCache, shards: Sequence[Shard], window: int) -> None:
        """Read shards through a cache."""
        self.cache, self.shards = cache, shards
        self.window: int | None = window
        self._table = lru_cache(64)(self._read_table)

    def table(self, number: int) -> Table:
        """Read from the fetched shard."""
        return self._table(number)

    def open(self, number: int) -> BinaryIO:
        """The fetched shard."""
        return self._fetched(number, lambda path: path.open("rb", buffering=0))

    def prefetch(self, number: int) -> None:
        """Fetch it in the background."""
        shard = self.shards[number]
        self.cache.prefetch(shard.name, shard.bytes, shard.sha256)

    def _read_table(self, number: int) -> Table:
        return self._fetched(number, lambda path: index_tar(path, self.shards[number]))

    def _fetched(self, number: int, use: Callable[[Path], T]) -> T:
        """Use a fetched shard; another process may have just evicted it, so look again."""
        shard = self.shards[number]
        for _ in range(3):
            path = self.cache.path(shard.name, shard.bytes, shard.sha256)
            try:
                return use(path)
            except FileNotFoundError:
                continue
            except BadShard as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
        raise BadShard(f"{shard.name}: evicted while it was opened; raise the cache's limit")

    def __getstate__(self) -> dict[str, Any]:
        return {"cache": self.cache, "shards": self.shards, "window": self.window}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def open_store(directory: Path) -> ShardStore:
    """The shards that a folder's index lists, there or where its link points.

    Raises:
        FileNotFoundError: there is no index.
        BadShard: a shard is not what the index says.
    """
    shards, link = read_index(directory), read_link(directory)
    if not link.remote:
        return LocalShards(Path(link.url), shards, directory)
    return RemoteShards(link.cache(), shards, link.window)


@dataclass(frozen=True)
class ShardLocation:
    """Where the shards of a folder's index lie.

    Attributes:
        url: a folder, or what ShardCache takes.
        cache_dir: folder that far shards are fetched into.
        cache_gb: the most it may hold, in gigabytes.
        window: how many far shards of a task training draws from at once.
    """

    url: str
    cache_dir: str = ""
    cache_gb: float = 0.0
    window: int = 1

    @property
    def remote(self) -> bool:
        """Whether it is no folder."""
        return "://" in self.url or self.url.startswith("pipe:")

    def cache(self) -> ShardCache:
        """What fetches the shards."""
        folder = Path(self.cache_dir).expanduser()
        return ShardCache(self.url, folder, int(self.cache_gb * 1e9))


def read_link(directory: Path) -> ShardLocation:
    """The link of a folder with an index; to the folder itself where it has none."""
    path = directory / LINK
    return ShardLocation(**read_json(path)) if path.is_file() else ShardLocation(str(directory))

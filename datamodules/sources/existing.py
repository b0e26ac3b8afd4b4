"""Shards that exist already: made in another run, on a shared disk or behind a URL."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from datamodules.errors import MissingSource, SourceError
from datamodules.files import atomic_write, write_json
from datamodules.shards.index import INDEX, Shard, parse_index
from datamodules.shards.store import LINK, ShardLocation
from datamodules.shards.transport import fetch_bytes


@dataclass(frozen=True)
class ExistingShards:
    """A set of shards to read where it is; its `index.json` lies beside them.

    Attributes:
        url: a folder; http(s)://...; hf://datasets/USER/NAME/PATH; or `pipe:COMMAND` with `{name}`
            where the file name goes, such as `pipe:aws s3 cp s3://bucket/set/{name} -`.
        cache_dir: folder that far shards are fetched into, shared by all runs.
        cache_gb: the most it may hold, in gigabytes.
        shuffle_window: how many far shards of a task training draws from at once.
    """

    url: str
    cache_dir: str
    cache_gb: float
    shuffle_window: int

    def __post_init__(self) -> None:
        """Check the values."""
        if self.shuffle_window < 1:
            raise SourceError(f"shuffle_window={self.shuffle_window}: give 1 or more")
        if self.cache_gb <= 0:
            raise SourceError(f"cache_gb={self.cache_gb}: give more than 0")

    def files(self) -> list[Path]:
        """The index of a folder; none of a URL."""
        return [] if self._link().remote else [Path(self.url) / INDEX]

    def link(self, folder: Path) -> list[Shard]:
        """Copy the index to a folder, with a link to where the shards are.

        Raises:
            OSError: the index cannot be fetched.
            ValueError: it is none.
        """
        link = self._link()
        if link.remote:
            data = fetch_bytes(self.url, INDEX)
        else:
            try:
                data = (Path(self.url) / INDEX).read_bytes()
            except OSError as error:
                raise MissingSource(
                    f"url={self.url}: {INDEX} cannot be read there ({error.strerror})"
                ) from error
        name = f"{INDEX} of {self.url}"
        try:
            index = json.loads(data)
        except ValueError as error:
            raise ValueError(f"{name} is no JSON ({error})") from error
        shards = parse_index(index, name)
        write_json(folder / LINK, asdict(link))
        with atomic_write(folder / INDEX) as file:
            file.write(data)
        return shards

    def _link(self) -> ShardLocation:
        link = ShardLocation(self.url, self.cache_dir, self.cache_gb, self.shuffle_window)
        if link.remote:
            return link
        return ShardLocation(
            str(Path(self.url).resolve()), self.cache_dir, self.cache_gb, self.shuffle_window
        )

"""The index of a set of shards: what each must contain."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import BadIndex, MissingShards
from datamodules.files import read_json

INDEX = "index.json"


@dataclass(frozen=True)
class Shard:
    """The index entry of one shard."""

    name: str
    words: list[str]
    split: str
    count: int
    bytes: int
    sha256: str
    skipped: list[str]
    """Samples left out while it was made, each with the reason."""


class BadShard(ValueError):
    """A shard that does not match its index entry; the message names it."""


def read_index(directory: Path) -> list[Shard]:
    """The shards of a directory.

    Raises:
        MissingShards: there is no index.
        ValueError: the index is damaged.
    """
    path = directory / INDEX
    if not path.is_file():
        raise MissingShards(f"no shard index {path}")
    return parse_index(read_json(path), str(path))


def parse_index(index: object, name: str) -> list[Shard]:
    """The shards that an index lists.

    Raises:
        BadIndex: it is damaged.
    """
    try:
        shards = [Shard(**entry) for entry in index["shards"]]  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise BadIndex(f"{name} is not a shard index ({error})") from error
    names = Counter(shard.name for shard in shards)
    if twice := [name for name, count in names.items() if count > 1]:
        raise BadIndex(f"{name} lists {', '.join(twice)} more than once")
    return shards

"""Random access to the samples of shards, by the headers of their tars."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.images import BadImage, Pixels, decode_image
from datamodules.shards import BadShard, Shard, read_index

FIELDS = ("lq.png", "gt.png", "json")


class Sample(NamedTuple):
    """One degraded image with everything known of it."""

    lq: Pixels
    gt: Pixels
    caption: str
    """Of the clean image; empty where captions are not asked for."""
    degradation: str
    source: str
    """Name of the clean photograph."""
    key: str
    """`SHARD/KEY`."""


@dataclass(frozen=True)
class SampleAddress:
    """Where a sample's bytes lie: offset and length of each field in its shard."""

    shard: Path
    key: str
    fields: Mapping[str, tuple[int, int]]

    @property
    def name(self) -> str:
        """`SHARD/KEY`."""
        return f"{self.shard.name}/{self.key}"

    def read(self, field: str) -> bytes:
        """A field's bytes.

        Raises:
            BadShard: the shard is gone or shorter than when it was indexed.
        """
        offset, size = self.fields[field]
        try:
            with self.shard.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise BadShard(f"{self.shard}: cannot be read ({error.strerror})") from error
        if len(data) < size:
            raise BadShard(f"{self.shard}: truncated inside {self.key}.{field}")
        return data

    def origin(self) -> dict[str, Any]:
        """The sample's `json` field: word, split, source, gt_sha256.

        Raises:
            BadImage: it is no JSON, or lacks one of these.
        """
        try:
            origin: dict[str, Any] = json.loads(self.read("json"))
            return {name: origin[name] for name in ("word", "split", "source", "gt_sha256")}
        except (ValueError, KeyError, TypeError) as error:
            raise BadImage(f"{self.shard}/{self.key}.json: damaged ({error!r})") from error

    def image(self, field: str) -> Pixels:
        """A decoded image field."""
        return decode_image(self.read(field), f"{self.shard}/{self.key}.{field}")

    def load(self, captions: Mapping[str, str] | None) -> Sample:
        """The whole sample, with its caption by the clean image's hash; None needs no caption.

        Raises:
            BadImage: a field is damaged, the images differ in size, or the caption is missing.
            BadShard: the shard changed since it was indexed.
        """
        origin, lq, gt = self.origin(), self.image("lq.png"), self.image("gt.png")
        if lq.shape != gt.shape:
            raise BadImage(f"{self.name}: lq is {lq.shape[:2]}, gt is {gt.shape[:2]}")
        caption = "" if captions is None else captions.get(origin["gt_sha256"], "")
        if captions is not None and not caption:
            raise BadImage(f"{self.name}: no caption; run `make captions` for these shards")
        return Sample(lq, gt, caption, origin["word"], origin["source"], self.name)


def index_shard(path: Path, expected: Shard) -> list[SampleAddress]:
    """Read a shard's tar headers.

    Raises:
        BadShard: it is missing, is truncated, or does not hold what the index says.
    """
    _check_size(path, expected)
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, field = member.name.partition(".")
                samples.setdefault(key, {})[field] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise BadShard(f"{path}: not a whole tar ({error}); make the shards again") from error
    for key, fields in samples.items():
        if missing := set(FIELDS) - set(fields):
            raise BadShard(f"{path}: sample {key} has no {', '.join(sorted(missing))}")
    if len(samples) != expected.count:
        raise BadShard(f"{path}: holds {len(samples)} samples, the index says {expected.count}")
    return [SampleAddress(path, key, fields) for key, fields in samples.items()]


def _check_size(path: Path, expected: Shard) -> None:
    if not path.is_file():
        raise BadShard(f"{path}: missing, though the index lists it; run `make shards`")
    if (size := path.stat().st_size) != expected.bytes:
        raise BadShard(f"{path}: {size} bytes, the index says {expected.bytes}; make it again")


class ShardSet:
    """All samples of one split, by degradation word."""

    def __init__(self, directory: Path, split: str) -> None:
        """Index the shards of a split.

        Raises:
            BadShard: a shard is not what the index says.
            ValueError: the split has no sample.
        """
        self.tasks: dict[str, list[SampleAddress]] = {}
        for shard in read_index(directory):
            if shard.split == split:
                addresses = index_shard(directory / shard.name, shard)
                self.tasks.setdefault(shard.word, []).extend(addresses)
        self.tasks = {word: self.tasks[word] for word in sorted(self.tasks) if self.tasks[word]}
        if not self.tasks:
            raise ValueError(f"no {split} samples in {directory}; run `make shards`")

    @property
    def words(self) -> tuple[str, ...]:
        """The degradation words, sorted."""
        return tuple(self.tasks)

    def all(self) -> list[SampleAddress]:
        """Every sample, task after task."""
        return [address for addresses in self.tasks.values() for address in addresses]

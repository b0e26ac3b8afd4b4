"""Random access to the samples of shards, near and far."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np

from datamodules.errors import BadIndex
from datamodules.images import BadImage, Pixels, decode_image, image_size
from datamodules.shards.index import BadShard
from datamodules.shards.store import ShardStore, open_store
from datamodules.shards.tar_index import KINDS

TAR_BLOCK = 512
NPY_HEADER = 128
"""Bytes of the header of an `npy` image."""


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class OpenSample:
    """A sample in an open shard."""

    def __init__(self, file: BinaryIO, row: Any, shard: str) -> None:
        """`row` is of tar_index.ROW."""
        self._file, self._row, self._shard = file, row, shard
        self._decoded: dict[str, Pixels] = {}
        self._arrays: dict[str, tuple[int, int, int]] = {}

    @property
    def name(self) -> str:
        """`SHARD/KEY`, the key as the tar has it."""
        start = int(self._row["json"]["offset"]) - TAR_BLOCK
        member = self._read(start, 100, "header").rstrip(b"\0").decode("utf-8", "replace")
        return f"{self._shard}/{member.partition('.')[0]}"

    @property
    def has_lq(self) -> bool:
        """Whether the degraded image is stored."""
        return bool(self._row["lq"]["kind"])

    def metadata(self) -> dict[str, Any]:
        """The sample's `json` field: split, source, gt_sha256.

        Raises:
            BadImage: it is no JSON, or lacks one of these.
        """
        data = self._member("json")
        try:
            found = json.loads(data)
            return {name: found[name] for name in ("split", "source", "gt_sha256")}
        except (ValueError, KeyError, TypeError) as error:
            raise BadImage(f"{self.name}.json: damaged ({error!r})") from error

    def size(self, field: str) -> tuple[int, int]:
        """Height and width of an image, by its header."""
        if self._kind(field) == "npy":
            return self._array(field)[:2]
        return image_size(io.BytesIO(self._member(field)), self._field_name(field))

    def pixels(self, field: str, window: Window | None) -> Pixels:
        """A window of `lq` or `gt`, the whole image by default.

        Raises:
            BadImage: it is damaged.
            BadShard: the shard is shorter than when it was indexed.
        """
        if self._kind(field) == "npy":
            return self._rows(field, window)
        if field not in self._decoded:
            self._decoded[field] = decode_image(self._member(field), self._field_name(field))
        image = self._decoded[field]
        return image if window is None else _cut(image, window)

    def _rows(self, field: str, window: Window | None) -> Pixels:
        height, width, start = self._array(field)
        top, left, rows, columns = window or Window(0, 0, height, width)
        data = self._read(start + top * width * 3, rows * width * 3, field)
        image: Pixels = np.frombuffer(data, np.uint8).reshape(rows, width, 3)
        return image[:, left : left + columns]

    def _array(self, field: str) -> tuple[int, int, int]:
        """Height, width and offset of the pixels of an `npy` image."""
        if field not in self._arrays:
            self._arrays[field] = self._read_array(field)
        return self._arrays[field]

    def _read_array(self, field: str) -> tuple[int, int, int]:
        offset, size = int(self._row[field]["offset"]), int(self._row[field]["size"])
        head = io.BytesIO(self._read(offset, min(size, NPY_HEADER), field))
        try:
            np.lib.format.read_magic(head)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
            height, width, channels = shape
            if channels != 3 or fortran or dtype != np.uint8:
                raise ValueError(f"not RGB of 8 bit: {shape}, {dtype}")
            if min(height, width) < 1 or head.tell() + height * width * 3 != size:
                raise ValueError(f"{size} bytes for {width}x{height} pixels")
        except (ValueError, SyntaxError, TypeError, TokenError) as error:  # NumPy lets all escape
            raise BadImage(f"{self._field_name(field)}: damaged image ({error})") from error
        return height, width, offset + head.tell()

    def _member(self, field: str) -> bytes:
        return self._read(int(self._row[field]["offset"]), int(self._row[field]["size"]), field)

    def _kind(self, field: str) -> str:
        return KINDS[int(self._row[field]["kind"])]

    def _field_name(self, field: str) -> str:
        return f"{self.name}.{field}.{self._kind(field)}"

    def _read(self, offset: int, size: int, field: str) -> bytes:
        try:
            self._file.seek(offset)
            data = self._file.read(size)
            while len(data) < size and (more := self._file.read(size - len(data))):
                data += more  # some file systems give less than is asked for
        except OSError as error:
            raise BadShard(f"{self._shard}: cannot be read ({error.strerror})") from error
        if len(data) < size:
            raise BadShard(f"{self._shard}: truncated inside a sample's {field}, at byte {offset}")
        return data


@dataclass(frozen=True)
class SampleAddress:
    """Where a sample is stored."""

    store: ShardStore
    shard: int
    row: int
    word: str
    """The degradation it is drawn for."""

    @contextmanager
    def open(self) -> Iterator[OpenSample]:
        """Open its shard.

        Raises:
            BadShard: the shard is gone or has changed.
        """
        row = self.store.table(self.shard)[self.row]
        with self.store.open(self.shard) as file:
            yield OpenSample(file, row, self.store.shards[self.shard].name)

    @property
    def name(self) -> str:
        """`SHARD/KEY`."""
        with self.open() as sample:
            return sample.name

    def metadata(self) -> dict[str, Any]:
        """See OpenSample.metadata."""
        with self.open() as sample:
            return sample.metadata()

    def image(self, field: str) -> Pixels:
        """The whole `lq` or `gt`."""
        with self.open() as sample:
            return sample.pixels(field, None)


class Samples(Sequence[SampleAddress]):
    """The samples of some shards, without a list of them."""

    def __init__(self, store: ShardStore, numbers: Sequence[int], word: str | None = None) -> None:
        """Those of the shards with these numbers, for a word or each for the first of its own."""
        self.store, self.word = store, word
        self.counts = tuple(store.shards[number].count for number in numbers)
        """Samples of each shard."""
        self._numbers, self._starts = tuple(numbers), np.cumsum([0, *self.counts])

    def __len__(self) -> int:
        """How many there are."""
        return int(self._starts[-1])

    @overload
    def __getitem__(self, i: int) -> SampleAddress: ...
    @overload
    def __getitem__(self, i: slice) -> list[SampleAddress]: ...
    def __getitem__(self, i: int | slice) -> SampleAddress | list[SampleAddress]:
        """Sample i, shard after shard."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = int(np.searchsorted(self._starts, i, side="right")) - 1
        number = self._numbers[part]
        word = self.word or self.store.shards[number].words[0]
        return SampleAddress(self.store, number, i - int(self._starts[part]), word)


class ShardSet:
    """All samples of one split, by degradation word."""

    def __init__(self, directory: Path, split: str) -> None:
        """Open the shards that the index in a folder lists.

        Raises:
            BadShard: a shard is not what the index says.
            BadIndex: the split has no sample.
        """
        self.store = open_store(directory)
        shards = list(enumerate(self.store.shards))
        self._numbers = [n for n, shard in shards if shard.split == split and shard.count]
        if not self._numbers:
            raise BadIndex(f"{directory} has no {split} samples")
        words = sorted({word for n in self._numbers for word in self.store.shards[n].words})
        self.tasks = {
            word: Samples(self.store, [n for n in self._numbers if self._serves(n, word)], word)
            for word in words
        }

    @property
    def words(self) -> tuple[str, ...]:
        """The degradation words, sorted."""
        return tuple(self.tasks)

    def all(self) -> Samples:
        """Every stored sample once, in the order of the shards."""
        return Samples(self.store, self._numbers)

    def _serves(self, number: int, word: str) -> bool:
        return word in self.store.shards[number].words


def _cut(image: Pixels, window: Window) -> Pixels:
    top, left, height, width = window
    return image[top : top + height, left : left + width]

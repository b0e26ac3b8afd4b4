"""Shards that change, break or lie after they were made."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.augment import RandomPatch
from datamodules.dataset import TrainDataset, load_whole
from datamodules.errors import TooManyBadSamples
from datamodules.files import read_json, write_json
from datamodules.images import BadImage, encode_npy
from datamodules.mixture import Mixture
from datamodules.shards.index import INDEX, BadShard, read_index
from datamodules.shards.reader import ShardSet
from tests.samples import many, write

FIRST = "rainy-train-000000.tar"
Members = list[tuple[str, bytes]]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two training shards of two samples and one for validation."""
    write(tmp_path / "shards", [*many("train", "rainy", 4), *many("val", "rainy", 2)], per_shard=2)
    return tmp_path / "shards"


def members(path: Path) -> Members:
    with tarfile.open(path) as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def rewrite(path: Path, contents: Members) -> None:
    """Write a tar as somebody else might, and have the index agree with its size."""
    with tarfile.open(path, "w") as archive:
        for name, data in contents:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    list_as(path, path.stat().st_size)


def list_as(path: Path, size: int) -> None:
    listed = read_index(path.parent)
    listed = [replace(s, bytes=size) if s.name == path.name else s for s in listed]
    write_json(path.parent / INDEX, {"shards": [asdict(shard) for shard in listed]})


def draws_of(shards: ShardSet) -> TrainDataset:
    counts = {word: samples.counts for word, samples in shards.tasks.items()}
    return TrainDataset(shards, None, Mixture(counts, 0), RandomPatch(16), with_clean=True)


# Between index and read


def _deleted(path: Path) -> str:
    path.unlink()
    return "cannot be read"


def _replaced(path: Path) -> str:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    return "replaced or changed"


def _truncated(path: Path) -> str:
    os.truncate(path, path.stat().st_size // 3)
    return "replaced or changed"


def _truncated_of_old(path: Path) -> str:
    times = path.stat()
    os.truncate(path, 1000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return "truncated inside a sample's"


@pytest.mark.parametrize("spoil", [_deleted, _replaced, _truncated, _truncated_of_old])
def test_shard_that_changes_while_it_is_used_is_named(
    shards: Path, spoil: Callable[[Path], str]
) -> None:
    opened = ShardSet(shards, "train")
    reason = spoil(shards / FIRST)
    with pytest.raises(BadShard, match=f"{FIRST}.*{reason}"):
        load_whole(opened.tasks["rainy"][0])
    dataset = draws_of(opened)
    items = [dataset[n] for n in range(40)]
    skipped = [line for item in items for line in item.skipped]
    assert all("train-000001.tar" in item.sample.key for item in items)
    assert skipped
    assert all(FIRST in line and reason in line for line in skipped)


def test_reads_that_give_less_than_is_asked_for_are_gone_on_with(shards: Path) -> None:
    """As some network file systems answer."""
    address = ShardSet(shards, "train").all()[0]
    whole = address.image("gt")

    class Slow(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(100, size or 0))

    with address.open() as stored:
        stored._file = Slow(stored._file.name)
        assert np.array_equal(stored.pixels("gt", None), whole)
        stored._file.close()


def test_all_shards_gone_while_they_are_used_is_an_error(shards: Path) -> None:
    dataset = draws_of(ShardSet(shards, "train"))
    for path in shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(TooManyBadSamples, match=r"20 random samples of 'rainy'.*cannot be read"):
        dataset[0]


# Truncated before it is opened


def _places() -> dict[str, Callable[[list[tarfile.TarInfo]], int]]:
    return {
        "inside a header": lambda found: found[1].offset + 300,
        "between header and data": lambda found: found[1].offset_data,
        "inside data": lambda found: found[1].offset_data + 5,
        "inside the last data": lambda found: found[-1].offset_data + 5,
        "at a member": lambda found: found[4].offset,
        "at a sample": lambda found: found[3].offset,
        "inside the first header": lambda found: 300,
        "at nothing": lambda found: 0,
    }


@pytest.mark.parametrize("place", _places())
def test_shard_cut_anywhere_is_named_even_if_the_index_agrees(shards: Path, place: str) -> None:
    path = shards / FIRST
    with tarfile.open(path) as archive:
        cut = _places()[place](archive.getmembers())
    os.truncate(path, cut)
    with pytest.raises(BadShard, match=rf"{FIRST}: {cut} bytes, the index says \d+"):
        ShardSet(shards, "train")
    list_as(path, cut)
    with pytest.raises(BadShard, match=rf"{FIRST}: (not a whole tar|holds 1|sample .* has no)"):
        ShardSet(shards, "train")


def test_tar_without_its_end_blocks_is_whole_but_not_as_listed(shards: Path) -> None:
    path = shards / FIRST
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    whole = [load_whole(a).key for a in ShardSet(shards, "train").all()]
    os.truncate(path, end)
    with pytest.raises(BadShard, match="the index says"):
        ShardSet(shards, "train")
    list_as(path, end)
    assert [load_whole(a).key for a in ShardSet(shards, "train").all()] == whole


# Built by somebody else


def _apart(found: Members) -> tuple[Members, str]:
    return [*found[1:], found[0]], "files of sample rainy-train-000 are not adjacent"


def _twice(found: Members) -> tuple[Members, str]:
    return [found[0], *found], "sample rainy-train-000 has two files gt"


def _two_encodings(found: Members) -> tuple[Members, str]:
    return [("rainy-train-000.gt.png", b""), *found], "sample rainy-train-000 has two files gt"


def _dots(found: Members) -> tuple[Members, str]:
    renamed = [(name.replace("train-", "0.9_"), data) for name, data in found]
    return renamed, r"sample rainy-0 has no gt, json; .*a KEY without dots"


def _below_a_folder(found: Members) -> tuple[Members, str]:
    return [(f"./{name}", data) for name, data in found], "sample  has no gt, json"


def _one_without_lq(found: Members) -> tuple[Members, str]:
    return [m for m in found if m[0] != "rainy-train-001.lq.npy"], "rainy-train-001 has no lq"


def _one_without_json(found: Members) -> tuple[Members, str]:
    return [m for m in found if m[0] != "rainy-train-001.json"], "rainy-train-001 has no json"


def _empty(found: Members) -> tuple[Members, str]:
    return [], "holds 0 samples, the index says 2"


@pytest.mark.parametrize(
    "build",
    [
        *(_apart, _twice, _two_encodings, _dots),
        *(_below_a_folder, _one_without_lq, _one_without_json, _empty),
    ],
)
def test_badly_built_shard_is_named(
    shards: Path, build: Callable[[Members], tuple[Members, str]]
) -> None:
    contents, reason = build(members(shards / FIRST))
    rewrite(shards / FIRST, contents)
    with pytest.raises(BadShard, match=f"{FIRST}.*{reason}"):
        ShardSet(shards, "train")


def test_foreign_shard_with_other_order_and_further_fields_is_read(shards: Path) -> None:
    contents = members(shards / FIRST)
    samples = [sorted(contents[i : i + 3], reverse=True) for i in (0, 3)]
    samples[0].insert(0, ("rainy-train-000.note.txt", b"mine"))
    rewrite(shards / FIRST, [member for sample in samples for member in sample])
    found = [load_whole(a) for a in ShardSet(shards, "train").all()]
    assert [sample.key.partition("/")[2] for sample in found[:2]] == [
        "rainy-train-000",
        "rainy-train-001",
    ]
    lq, gt = many("train", "rainy", 2)[1].make()
    assert np.array_equal(found[1].lq, lq)  # type: ignore[arg-type]
    assert np.array_equal(found[1].gt, gt)


def test_long_keys_of_others_keep_their_first_hundred_letters(shards: Path) -> None:
    contents = members(shards / FIRST)
    long = [(name.replace("rainy", "r" * 150), data) for name, data in contents]
    rewrite(shards / FIRST, long)
    sample = load_whole(ShardSet(shards, "train").all()[1])
    assert sample.key.startswith(f"{FIRST}/rrrr")
    assert np.array_equal(sample.gt, many("train", "rainy", 2)[1].make()[1])


def test_index_that_lists_a_shard_twice_is_refused(shards: Path) -> None:
    index = read_json(shards / INDEX)
    index["shards"].append(index["shards"][0])
    write_json(shards / INDEX, index)
    with pytest.raises(ValueError, match=f"lists {FIRST} more than once"):
        ShardSet(shards, "train")


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"shards": [3]}', '{"shards": [{"a": 1}]}'])
def test_index_of_another_kind_is_refused(shards: Path, text: str) -> None:
    (shards / INDEX).write_text(text)
    with pytest.raises(ValueError, match="not a shard index"):
        ShardSet(shards, "train")


# Damaged inside


def _array(shape: str, dtype: str = "|u1", size: int = 40 * 48 * 3, order: str = "False") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00v\x00" + header.ljust(117).encode() + b"\n" + bytes(size)


NPY_FAULTS = {
    "magic": b"\x93NUMPX" + _array("(40, 48, 3)")[6:],
    "grey": _array("(40, 48)", size=40 * 48),
    "four channels": _array("(40, 48, 4)", size=40 * 48 * 4),
    "16 bit": _array("(40, 48, 3)", "<u2", 40 * 48 * 6),
    "float": _array("(40, 48, 3)", "<f4", 40 * 48 * 12),
    "object": _array("(40, 48, 3)", "|O"),
    "columns first": _array("(40, 48, 3)", order="True"),
    "too many pixels": _array("(4000, 48, 3)"),
    "negative": _array("(-40, -48, 3)"),
    "no shape": _array("None"),
    "no bracket": _array("(40, 48, 3"),
    "no quote": _array("(40, 48, 3)", dtype="|u1\\"),
    "no literal": _array("(40, 48, __import__('os'))"),
    "half a header": _array("(40, 48, 3)")[:90],
    "nothing": b"",
}


@pytest.mark.parametrize("fault", NPY_FAULTS)
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
def test_damaged_array_is_named_and_passed_over(shards: Path, fault: str) -> None:
    contents = dict(members(shards / FIRST))
    contents["rainy-train-000.lq.npy"] = NPY_FAULTS[fault]
    rewrite(shards / FIRST, list(contents.items()))
    opened = ShardSet(shards, "train")
    with pytest.raises(BadImage, match=rf"{FIRST}/rainy-train-000\.lq\.npy: damaged image"):
        load_whole(opened.all()[0])
    items = [draws_of(opened)[n] for n in range(20)]
    assert any("rainy-train-000.lq.npy" in line for item in items for line in item.skipped)
    assert not any(item.sample.key.endswith("-000") for item in items)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_arrays_damaged_at_random_are_named(shards: Path) -> None:
    rng = np.random.default_rng(0)
    whole = dict(members(shards / FIRST))
    name = "rainy-train-000.gt.npy"
    address = ShardSet(shards, "train").all()[0]
    start = int(address.store.table(0)[0]["gt"]["offset"])
    opened, path = ShardSet(shards, "train"), shards / FIRST
    times = path.stat()
    letters = b"(){}[]'\",:0123456789-+\n \\#LeE"
    refused = 0
    for _ in range(300):
        head = bytearray(whole[name][:128])
        for _ in range(int(rng.integers(1, 4))):
            head[int(rng.integers(128))] = letters[int(rng.integers(len(letters)))]
        with path.open("r+b") as file:
            file.seek(start)
            file.write(head)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        try:
            assert opened.all()[0].image("gt").shape == (40, 48, 3)
        except BadImage as error:
            assert name in str(error)
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b'{"split": "train"}', b"\xff\xfe"])
def test_damaged_json_is_named(shards: Path, text: bytes) -> None:
    contents = dict(members(shards / FIRST))
    contents["rainy-train-000.json"] = text
    rewrite(shards / FIRST, list(contents.items()))
    with pytest.raises(BadImage, match=rf"{FIRST}/rainy-train-000\.json: damaged"):
        load_whole(ShardSet(shards, "train").all()[0])


def test_images_of_two_sizes_in_a_sample_are_named(shards: Path) -> None:
    contents = dict(members(shards / FIRST))
    contents["rainy-train-000.lq.npy"] = encode_npy(np.zeros((40, 44, 3), np.uint8))
    rewrite(shards / FIRST, list(contents.items()))
    with pytest.raises(BadImage, match=r"-000: lq is \(40, 44\), gt is \(40, 48\)"):
        load_whole(ShardSet(shards, "train").all()[0])


# The table of headers that is kept


def table(shards: Path) -> Path:
    (found,) = shards.glob("headers-*.npy")
    return found


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _nothing(path: Path) -> None:
    os.truncate(path, 0)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _bad_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20] = ord("(")
    path.write_bytes(data)


def _other_table(path: Path) -> None:
    np.save(path, np.zeros(6))


def _fewer_rows(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize("spoil", [_half, _nothing, _zeros, _bad_header, _other_table, _fewer_rows])
def test_damaged_table_is_made_anew(shards: Path, spoil: Callable[[Path], None]) -> None:
    before = [load_whole(a).key for a in ShardSet(shards, "train").all()]
    whole = table(shards).read_bytes()
    spoil(table(shards))
    assert [load_whole(a).key for a in ShardSet(shards, "train").all()] == before
    assert table(shards).read_bytes() == whole


def test_table_follows_shards_that_are_made_again(shards: Path) -> None:
    ShardSet(shards, "train")
    former = table(shards)
    contents = members(shards / FIRST)
    rewrite(shards / FIRST, [contents[i] for i in (2, 1, 0, 3, 4, 5)])
    os.utime(shards / FIRST, ns=(1, 1))
    sample = load_whole(ShardSet(shards, "train").all()[0])
    assert np.array_equal(sample.gt, many("train", "rainy", 1)[0].make()[1])
    assert table(shards) != former


def test_shards_in_a_folder_that_cannot_be_written_are_read(
    shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Path.open

    def read_only(path: Path, mode: str = "r", *args: object, **more: object) -> object:
        if "w" in mode:
            raise OSError(30, "Read-only file system")
        return whole(path, mode, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", read_only)  # since tests may run as root
    with caplog.at_level(logging.WARNING):
        found = ShardSet(shards, "train")
    assert "Read-only file system" in caplog.text
    assert "indexed again each time" in caplog.text
    assert len({load_whole(address).key for address in found.all()}) == 4
    assert not list(shards.glob("headers-*"))

"""The pictures people have: other kinds, turned, huge, damaged, and oddly named."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image, ImageOps

from datamodules.batch import Sample
from datamodules.dataset import load_whole
from datamodules.images import BadImage, decode_image, read_image
from datamodules.shards.index import read_index
from datamodules.shards.reader import ShardSet
from datamodules.shards.writer import write_shards
from datamodules.sources.base import sample_key
from tests.conftest import form, paired_folder, photograph
from tests.samples import Made, many, write


def save_pair(root: Path, name: str, lq: Image.Image, gt: Image.Image, **options: Any) -> None:
    """The same pair for training and validation."""
    for split in ("train", "val"):
        for kind, image in (("LQ", lq), ("GT", gt)):
            path = root / split / "rainy" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, **options)


def made(root: Path, folder: Path, split: str = "train", **changes: Any) -> list[Sample]:
    write(folder, paired_folder(root).plan(), **changes)
    return [load_whole(address) for address in ShardSet(folder, split).all()]


def _sixteen_bits(rgb: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(rgb.convert("L"), np.uint16) * 257)


CONVERTED: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "grey": (lambda rgb: rgb.convert("L"), "png"),
    "two levels": (lambda rgb: rgb.convert("1"), "png"),
    "palette": (lambda rgb: rgb.quantize(16), "png"),
    "CMYK": (lambda rgb: rgb.convert("CMYK"), "tif"),
    "opaque alpha": (lambda rgb: rgb.convert("RGBA"), "png"),
    "grey with opaque alpha": (lambda rgb: rgb.convert("LA"), "png"),
    "YCbCr": (lambda rgb: rgb, "jpg"),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_other_kinds_of_pictures_become_rgb(tmp_path: Path, kind: str) -> None:
    convert, suffix = CONVERTED[kind]
    image = convert(Image.fromarray(photograph(40, 48)))
    save_pair(tmp_path / "pairs", f"a.{suffix}", image, image)
    (sample,) = made(tmp_path / "pairs", tmp_path / "shards")
    expected = Image.open(tmp_path / "pairs/train/rainy/LQ" / f"a.{suffix}").convert("RGB")
    assert np.array_equal(sample.lq, np.asarray(expected))
    assert np.array_equal(sample.gt, sample.lq)


def test_16_bit_pictures_become_8_bit(tmp_path: Path) -> None:
    image = Image.fromarray(photograph(40, 48))
    save_pair(tmp_path / "pairs", "a.png", _sixteen_bits(image), image.convert("L"))
    (sample,) = made(tmp_path / "pairs", tmp_path / "shards")
    assert np.array_equal(sample.lq, sample.gt)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_picture_is_left_out_by_name(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(photograph(40, 48))
    clear = image.quantize(16) if mode == "P" else image.convert(mode)
    options: dict[str, Any] = {"transparency": 3} if mode == "P" else {}
    if mode != "P":
        clear.putalpha(200)
    save_pair(tmp_path / "pairs", "a.png", image, image)
    clear.save(tmp_path / "pairs/train/rainy/GT/a.png", **options)
    with pytest.raises(ValueError, match=r"GT/a\.png: has transparent pixels; flatten"):
        made(tmp_path / "pairs", tmp_path / "shards")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_fit_each_other(tmp_path: Path, orientation: int) -> None:
    """A camera's LQ with an orientation, and its GT that was saved upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(photograph(40, 48))
    turned = tmp_path / "turned.png"
    stored.save(turned, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(turned))
    for split in ("train", "val"):
        for kind in ("LQ", "GT"):
            (tmp_path / "pairs" / split / "rainy" / kind).mkdir(parents=True)
        shutil.copy(turned, tmp_path / "pairs" / split / "rainy/LQ/a.png")
        Image.fromarray(np.asarray(upright)).save(tmp_path / "pairs" / split / "rainy/GT/a.png")
    for split in ("train", "val"):
        (sample,) = made(tmp_path / "pairs", tmp_path / "shards", split)
        assert np.array_equal(sample.lq, np.asarray(upright))
        assert np.array_equal(sample.gt, sample.lq)


def test_orientation_of_lq_alone_that_does_not_fit_is_named(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(photograph(40, 48))
    save_pair(tmp_path / "pairs", "a.png", image, image)
    image.save(tmp_path / "pairs/train/rainy/LQ/a.png", exif=exif)
    with pytest.raises(ValueError, match=r"LQ/a\.png is 40x48 but .*GT/a\.png is 48x40"):
        made(tmp_path / "pairs", tmp_path / "shards")


def _jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    buffer = io.BytesIO()
    Image.fromarray(photograph(40, 48)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def _tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 48), 65535, np.uint16)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("whole", "where", "instead"),
    [
        (_jpeg, b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02"),  # the width is a text
        (_tiff, b"\x11\x01\x04\x00", b"\x11\x01\x05\x00"),  # an offset is a fraction
        (_tiff, b"\x11\x01\x04\x00", b"\x11\x01\x10\x00"),  # of 64 bits
        (_jpeg, b"\xff\xdb", b"\xff\x00"),
    ],
)
def test_damaged_header_is_named_whatever_pillow_raises(
    whole: Callable[[], bytes], where: bytes, instead: bytes
) -> None:
    assert decode_image(whole(), "whole").ndim == 3
    data = whole().replace(where, instead, 1)
    with pytest.raises(BadImage, match=r"^odd: "):
        decode_image(data, "odd")


def test_wide_picture_is_tiled_in_training_and_whole_in_validation(tmp_path: Path) -> None:
    image = Image.fromarray(photograph(40, 20_000))
    save_pair(tmp_path / "pairs", "wide.png", image, image)
    tiles = made(tmp_path / "pairs", tmp_path / "shards", tile_size=512)
    assert len(tiles) == 40  # of 500
    together = np.concatenate([tile.lq for tile in tiles], axis=1)
    assert np.array_equal(together, np.asarray(image))
    (whole,) = made(tmp_path / "pairs", tmp_path / "shards", "val", tile_size=512)
    assert whole.lq.shape == (40, 20_000, 3)


def _png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_decompression_bomb_is_left_out_by_name(tmp_path: Path) -> None:
    image = Image.fromarray(photograph(40, 48))
    save_pair(tmp_path / "pairs", "a.png", image, image)
    bomb = tmp_path / "pairs/train/rainy/LQ/a.png"
    bomb.write_bytes(_png_that_claims(40_000, 40_000))
    with pytest.raises(BadImage, match=r"LQ/a\.png: damaged image .*exceeds limit"):
        read_image(bomb)
    with pytest.raises(ValueError, match=r"1 training pairs.*cannot be used[\s\S]*exceeds limit"):
        made(tmp_path / "pairs", tmp_path / "shards")


def test_unreadable_first_picture_is_listed_with_its_own_task(tmp_path: Path) -> None:
    for word in ("rainy", "snowy"):
        for name in ("a", "b"):
            image = Image.fromarray(photograph(40, 48))
            for kind in ("LQ", "GT"):
                path = tmp_path / "pairs/train" / word / kind / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
        (tmp_path / "pairs/train" / word / "LQ/a.png").write_bytes(b"")
    (tmp_path / "pairs/val").mkdir()
    samples = paired_folder(tmp_path / "pairs").plan()
    write_shards(samples, tmp_path / "shards", form(), 1.0, num_workers=0)
    skipped = {shard.words[0]: shard.skipped for shard in read_index(tmp_path / "shards")}
    assert set(skipped) == {"rainy", "snowy"}
    for word, lines in skipped.items():
        assert len(lines) == 1
        assert lines[0].startswith(f"{word}/a-000000: ")


@pytest.mark.parametrize("workers", [0, 1])
def test_target_that_cannot_be_written_is_named(tmp_path: Path, workers: int) -> None:
    (tmp_path / "file").write_text("no folder")
    target = tmp_path / "file" / "shards"
    with pytest.raises(OSError, match=str(target)):
        write_shards(many("train", "rainy", 1), target, form(), 0.0, num_workers=workers)


def test_names_in_any_alphabet_and_length_stay_apart(tmp_path: Path) -> None:
    names = [
        *("шторм", "雨の日", "مطر", "été", "e\u0301te\u0301", "🌧"),
        *("Rain", "rain", "RAIN", "a b'c\"d", "-", "x" * 240, "x" * 239 + "y"),
    ]
    for number, name in enumerate(names):
        image = Image.fromarray(photograph(40, 48, seed=number))
        save_pair(tmp_path / "pairs", f"{name}.png", image, image)
    samples = made(tmp_path / "pairs", tmp_path / "shards")
    assert len(samples) == len(names)
    by_source = {sample.source: sample for sample in samples}
    for number, name in enumerate(names):
        found = by_source[f"train/rainy/GT/{name}.png"]
        assert np.array_equal(found.gt, photograph(40, 48, seed=number))
    urls = [str(path) for path in (tmp_path / "shards").glob("rainy-train-*.tar")]
    plain = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len({sample["__key__"] for sample in plain}) == len(names)
    assert {json.loads(s["json"])["source"] for s in plain} == set(by_source)


def test_keys_are_short_safe_and_unique() -> None:
    keys = [sample_key(name, number) for number, name in enumerate(["ÄÖ.x", "ä" * 300, "A" * 300])]
    assert keys == ["x-000000", "-000001", f"{'a' * 64}-000002"]


def test_tall_and_tiny_pictures_are_kept(tmp_path: Path) -> None:
    samples = [
        Made("train", ("rainy",), "tall", height=700, width=3),
        Made("train", ("rainy",), "dot", height=1, width=1),
        *many("val", "rainy", 1),
    ]
    write(tmp_path, samples, tile_size=64)
    sizes = [load_whole(a).lq.shape[:2] for a in ShardSet(tmp_path, "train").all()]
    assert sum(height for height, _ in sizes[:-1]) == 700
    assert all(height <= 64 and width == 3 for height, width in sizes[:-1])
    assert sizes[-1] == (1, 1)

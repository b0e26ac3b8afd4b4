"""Reading images: everything becomes RGB, 8 bit; what cannot is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.files import atomic_write
from datamodules.images import BadImage, content_hash, decode_image, encode_png, read_image


def test_png_round_trip_is_lossless() -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_png(image), "x"), image)


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))


def test_16_bit_grey_is_scaled(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 65535, 32896]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png")[0, :, 0].tolist() == [0, 1, 255, 128]


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    wide = np.full((4, 4, 3), 65535, dtype=np.uint16)
    wide[0, 0] = (0, 257, 51400)  # OpenCV writes blue, green, red
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    image = read_image(tmp_path / "wide.png")
    assert image[0, 0].tolist() == [200, 1, 0]
    assert image[1, 1].tolist() == [255, 255, 255]


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    colour = np.full((5, 5, 4), (10, 20, 30, 255), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png")[2, 2].tolist() == [10, 20, 30]


def _transparent(path: Path) -> None:
    Image.fromarray(np.zeros((5, 5, 4), dtype=np.uint8)).save(path)


def _floating(path: Path) -> None:
    Image.fromarray(np.zeros((5, 5), dtype=np.float32)).save(path)


def _truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path.write_bytes(encode_png(noise)[:3000])


def _text(path: Path) -> None:
    path.write_text("not an image")


def _empty(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    ("write", "suffix", "reason"),
    [
        (_transparent, "png", "transparent"),
        (_floating, "tiff", "floating-point"),
        (_truncated, "png", "damaged"),
        (_text, "png", "not an image"),
        (_empty, "png", "not an image"),
    ],
)
def test_unusable_image_is_named(
    tmp_path: Path, write: Callable[[Path], None], suffix: str, reason: str
) -> None:
    path = tmp_path / f"bad.{suffix}"
    write(path)
    with pytest.raises(BadImage, match=rf"bad\.{suffix}.*{reason}"):
        read_image(path)


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")


def test_content_hash_sees_pixels_and_size_only(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png", compress_level=0)
    Image.fromarray(image).save(tmp_path / "b.bmp")
    same = {content_hash(read_image(tmp_path / name)) for name in ("a.png", "b.bmp")}
    assert same == {content_hash(image)}
    assert content_hash(image.reshape(4, 6, 3)) not in same


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "x") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"cannot write .*x: No space left.*make room"),
        atomic_write(tmp_path / "x") as file,
    ):
        Path("/dev/full").write_bytes(b"x" * 9999)
        file.write(b"never")
    assert list(tmp_path.iterdir()) == []

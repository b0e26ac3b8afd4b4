"""People's files: what they carry survives, in each format; what cannot be kept is said."""

from __future__ import annotations

import io
import itertools
import logging
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from datamodules.images import BadImage
from pipeline.restore.image_io import FORMATS, check_fits, encode_photograph, read_photograph
from tests.conftest import photograph

MAKER = 0x010F
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(photograph(30, 44)).convert(mode)


def wide(channels: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 65536, (30, 44, channels), dtype=np.uint16)
    return array[..., 0] if channels == 1 else array


def again(path: Path, format: str | None = None) -> tuple[bytes, tuple[str, ...]]:
    """What is written where nothing is restored."""
    found = read_photograph(path)
    return encode_photograph(found, found.pixels, format or found.format)


@pytest.mark.parametrize(
    ("format", "mode"),
    [*itertools.product(("PNG", "TIFF"), ("RGB", "L", "RGBA", "LA")), ("BMP", "RGB"), ("BMP", "L")],
)
def test_lossless_formats_keep_every_pixel(format: str, mode: str, tmp_path: Path) -> None:
    image = picture(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(photograph(30, 44, 1)[..., 0]))
    image.save(tmp_path / "a", format)
    data, remarks = again(tmp_path / "a")
    with Image.open(io.BytesIO(data)) as made:
        assert made.format == format and made.mode == mode and not remarks
        assert np.array_equal(np.asarray(made), np.asarray(image))


@pytest.mark.parametrize(("format", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("WEBP", "RGBA")])
def test_lossy_formats_stay_close(format: str, mode: str, tmp_path: Path) -> None:
    image = picture(mode)
    if mode == "RGBA":
        image.putalpha(100)
    image.save(tmp_path / "a", format, quality=98)
    data, remarks = again(tmp_path / "a")
    with Image.open(io.BytesIO(data)) as made, Image.open(tmp_path / "a") as given:
        assert made.mode == mode and not remarks
        difference = np.asarray(made, float) - np.asarray(given, float)
        assert np.square(difference).mean() < 30


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_orientation_is_honoured_once(format: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[MAKER] = orientation, "Maker"
    picture().save(
        tmp_path / "a", format, exif=exif, **({"quality": 100} if format == "JPEG" else {})
    )
    with Image.open(tmp_path / "a") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = read_photograph(tmp_path / "a")
    assert np.array_equal(found.pixels, expected)
    data, _ = encode_photograph(found, found.pixels, format)
    with Image.open(io.BytesIO(data)) as made:
        assert made.size == (expected.shape[1], expected.shape[0])
        assert made.getexif().get(0x0112, 1) == 1 and made.getexif()[MAKER] == "Maker"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_metadata_is_carried_over(format: str, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[MAKER] = "Maker"
    options: dict[str, Any] = {} if format in {"PNG", "TIFF"} else {"xmp": XMP}
    options |= {} if format == "WEBP" else {"dpi": (300, 300)}
    picture().save(tmp_path / "a", format, exif=exif, icc_profile=profile, **options)
    data, _ = again(tmp_path / "a")
    with Image.open(io.BytesIO(data)) as made:
        assert made.getexif()[MAKER] == "Maker" and made.info["icc_profile"] == profile
        if "dpi" in options:
            assert made.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        if "xmp" in options:
            assert b'tiff:Orientation="1"' in made.info["xmp"]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_stay(format: str, channels: int, tmp_path: Path) -> None:
    array, path = wide(channels), tmp_path / f"a.{format.lower()}"
    turned = array[..., [2, 1, 0, 3][:channels]] if channels > 1 else array
    cv2.imwrite(str(path), turned)
    found = read_photograph(path)
    assert found.pixels.dtype == np.uint16 and found.is_grey == (channels == 1)
    assert np.array_equal(found.pixels, np.atleast_3d(array)[..., :3] * np.ones(3, np.uint16))
    data, _ = encode_photograph(found, found.pixels, format)
    (tmp_path / f"b.{format.lower()}").write_bytes(data)
    again = read_photograph(tmp_path / f"b.{format.lower()}")
    assert np.array_equal(again.pixels, found.pixels) and again.is_grey == found.is_grey
    assert (again.alpha is None) == (channels != 4)
    if again.alpha is not None:
        assert np.array_equal(again.alpha, array[..., 3])


def write_png(path: Path, array: np.ndarray, *chunks: bytes) -> None:
    """A PNG of 16 bits, also of the kinds that OpenCV and Pillow do not write."""
    array = np.atleast_3d(array)
    height, width, channels = array.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    content = [
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0),
        *chunks,
        b"IDAT" + zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes()),
        b"IEND",
    ]
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in content)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def test_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cv2.imwrite(str(tmp_path / "a.png"), wide(3))
    assert again(tmp_path / "a.png", "TIFF")[0] and not caplog.records


def test_grey_with_alpha_of_sixteen_bits_stays_grey(tmp_path: Path) -> None:
    array = wide(2)
    write_png(tmp_path / "a.png", array)
    found = read_photograph(tmp_path / "a.png")
    assert found.is_grey and found.alpha is not None
    assert np.array_equal(found.pixels, array[..., :1] * np.ones(3, np.uint16))
    assert np.array_equal(found.alpha, array[..., 1])
    data, remarks = again(tmp_path / "a.png")
    assert data[24:26] == bytes([16, 4]) and not remarks  # bits, and the kind by the header
    (tmp_path / "b.png").write_bytes(data)
    made = read_photograph(tmp_path / "b.png")
    assert made.is_grey and made.alpha is not None
    assert np.array_equal(made.pixels, found.pixels) and np.array_equal(made.alpha, found.alpha)
    with Image.open(io.BytesIO(data)) as image:  # which narrows to 8
        assert np.array_equal(np.asarray(image.convert("LA")), array >> 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_of_sixteen_bits_becomes_alpha(channels: int, tmp_path: Path) -> None:
    array = np.atleast_3d(wide(channels)).copy()
    array[3:9, 5:7] = clear = [4660, 22136, 255][:channels]
    array[20, 20], array[20, 20, 0] = clear, 4661
    write_png(tmp_path / "a.png", array, b"tRNS" + struct.pack(f">{channels}H", *clear))
    found = read_photograph(tmp_path / "a.png")
    expected = np.full((30, 44), 65535, np.uint16)
    expected[3:9, 5:7] = 0
    assert found.alpha is not None and np.array_equal(found.alpha, expected)
    assert found.is_grey == (channels == 1)
    assert np.array_equal(found.pixels, array * np.ones(3, np.uint16))


def test_metadata_goes_into_a_png_of_sixteen_bits(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), wide(3))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[MAKER] = "Maker"
    found = read_photograph(tmp_path / "a.png")
    kept = {"exif": exif.tobytes(), "icc_profile": profile, "dpi": (300, 300), "xmp": XMP}
    data, remarks = encode_photograph(found._replace(kept=kept), found.pixels, "PNG")
    with Image.open(io.BytesIO(data)) as made:
        made.load()
        assert made.getexif()[MAKER] == "Maker" and made.info["icc_profile"] == profile
        assert made.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert made.info["XML:com.adobe.xmp"].encode() == XMP
    _, remarks = encode_photograph(found._replace(kept=kept), found.pixels, "TIFF")
    assert remarks == ("not kept in a TIFF of 16 bits: EXIF",)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_profile_that_does_not_fit_sixteen_bits_of_grey_is_reported(
    format: str, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), wide(1))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = read_photograph(tmp_path / "a.png")._replace(kept={"icc_profile": profile})
    _, remarks = encode_photograph(found, found.pixels, format)
    assert remarks == (f"not kept in a {format} of 16 bits: the colour profile",)


@pytest.mark.parametrize("format", FORMATS)
def test_alpha_and_depth_that_a_format_lacks_are_said(format: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), wide(4))
    data, remarks = again(tmp_path / "a.png", format)
    said = " ".join(remarks)
    assert ("8 bits" in said) == (format in {"JPEG", "WEBP", "BMP"})
    assert ("transparency" in said) == (format in {"JPEG", "BMP"})
    if format != "TIFF":
        with Image.open(io.BytesIO(data)) as made:
            assert made.format == format and made.size == (44, 30)
    else:
        assert tifffile.imread(io.BytesIO(data)).dtype == np.uint16


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    picture("CMYK").save(tmp_path / "a.jpg", quality=95)
    found = read_photograph(tmp_path / "a.jpg")
    assert found.remarks == ("CMYK became RGB",)
    assert np.abs(found.pixels.astype(float) - photograph(30, 44)).mean() < 8


def test_palette_and_bitmap_are_read(tmp_path: Path) -> None:
    picture("P").save(tmp_path / "a.png")
    picture("1").save(tmp_path / "b.png")
    colours, bits = read_photograph(tmp_path / "a.png"), read_photograph(tmp_path / "b.png")
    assert not colours.is_grey and colours.pixels.shape == (30, 44, 3)
    assert bits.is_grey and set(np.unique(bits.pixels)) == {0, 255}


def animated(path: Path) -> None:
    picture().save(path, "WEBP", save_all=True, append_images=[picture("L").convert("RGB")])


def floats(path: Path) -> None:
    tifffile.imwrite(path, np.full((8, 8), np.nan, np.float32))


def bomb(path: Path) -> None:
    """A PNG whose header says 60,000 x 60,000."""
    picture().save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "not an image (0 bytes)"),
        (lambda path: path.write_bytes(b"GIF? no"), "not an image (7 bytes)"),
        (lambda path: picture().save(path, "GIF"), "a GIF image; save it as one of PNG"),
        (animated, "has 2 frames or pages"),
        (floats, "a floating-point image"),
        (bomb, "damaged image (Image size (3600000000 pixels) exceeds limit"),
        (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
        (lambda path: None, "cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_photograph_is_named(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "a")
    with pytest.raises(BadImage, match=re.escape(message)) as raised:
        read_photograph(tmp_path / "a")
    assert str(raised.value).startswith(f"{tmp_path / 'a'}: ")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused_or_read_whole(
    format: str, share: float, tmp_path: Path
) -> None:
    picture().save(tmp_path / "a", format)
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadImage):
        read_photograph(tmp_path / "a")


def test_first_picture_of_a_jpeg_with_several_is_restored(tmp_path: Path) -> None:
    first, second = picture(), picture().rotate(180)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=98)
    found = read_photograph(tmp_path / "a.jpg")
    difference = np.asarray(first, float) - found.pixels
    assert np.square(difference).mean() < 30
    assert found.format == "JPEG"
    assert found.remarks == ("only the first of its pictures is restored",)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (np.uint32, {"photometric": "minisblack"}, "has 32 bits a sample"),
        (np.int32, {"photometric": "minisblack"}, "has 32 bits a sample"),
    ],
)
def test_kinds_of_tiff_that_would_be_misread_are_refused(
    kind: type, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30), kind), **options)
    with pytest.raises(BadImage, match=message):
        read_photograph(tmp_path / "a.tif")


def test_tiff_of_sixteen_bits_in_separate_planes_is_read(tmp_path: Path) -> None:
    array = wide(3)
    planes = np.moveaxis(array, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_photograph(tmp_path / "a.tif").pixels, array)


def test_premultiplied_alpha_of_sixteen_bits_becomes_straight(tmp_path: Path) -> None:
    array = np.full((20, 30, 4), (10_000, 20_000, 30_000, 32_768), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["assocalpha"])
    found = read_photograph(tmp_path / "a.tif")
    assert found.alpha is not None and (found.alpha == 32_768).all()
    assert found.pixels[0, 0] == pytest.approx(np.array([20_000, 40_000, 60_000]), abs=2)


def test_cmyk_of_sixteen_bits_becomes_rgb(tmp_path: Path) -> None:
    inks = (255 - np.asarray(picture("RGB"), np.uint16)) * 257
    array = np.dstack([inks, np.zeros((30, 44), np.uint16)])
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="separated")
    found = read_photograph(tmp_path / "a.tif")
    assert found.remarks == ("CMYK became RGB",) and found.alpha is None
    assert found.pixels.dtype == np.uint16 and found.pixels.shape == (30, 44, 3)
    assert np.corrcoef(found.pixels.ravel(), photograph(30, 44).ravel())[0, 1] > 0.8


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_file_of_sixteen_bits_is_refused(
    format: str, share: float, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), wide(3))
    data, _ = again(tmp_path / "a.png", format)
    (tmp_path / "b").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadImage):
        read_photograph(tmp_path / "b")


@pytest.mark.parametrize(("format", "dpi"), [("PNG", None), ("TIFF", (72, 72))])
def test_resolution_of_sixteen_bits_that_have_none(
    format: str, dpi: tuple[int, int] | None, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), wide(3))
    data, _ = again(tmp_path / "a.png", format)
    (tmp_path / "b").write_bytes(data)
    assert read_photograph(tmp_path / "b").kept.get("dpi") == dpi


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tiff_whose_zero_is_white_is_turned(kind: type, tmp_path: Path) -> None:
    white = np.iinfo(kind).max
    array = np.linspace(0, white, 600).astype(kind).reshape(20, 30)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    assert np.array_equal(read_photograph(tmp_path / "a.tif").pixels[..., 0], white - array)


def test_cmyk_with_a_profile_of_other_colours_becomes_rgb(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = picture().convert("CMYK")
    image.save(tmp_path / "a.tif", icc_profile=profile)
    found = read_photograph(tmp_path / "a.tif")
    assert np.array_equal(found.pixels, np.asarray(image.convert("RGB")))


def test_what_a_format_does_not_hold_is_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[MAKER] = "Maker"
    picture().save(tmp_path / "a.jpg", exif=exif, xmp=XMP, dpi=(300, 300))
    found = read_photograph(tmp_path / "a.jpg")
    told = {f: encode_photograph(found, found.pixels, f)[1] for f in ("BMP", "WEBP", "TIFF", "PNG")}
    assert told["PNG"] == ()
    assert told["WEBP"] == ("not kept in a WEBP of 8 bits: the resolution",)
    assert told["TIFF"] == ("not kept in a TIFF of 8 bits: XMP",)
    assert "EXIF" in told["BMP"][0] and "XMP" in told["BMP"][0]


def test_what_cameras_write_goes_into_a_tiff(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    exif.get_ifd(0x8825)[1] = "N"
    picture().save(tmp_path / "a.jpg", exif=exif)
    found = read_photograph(tmp_path / "a.jpg")
    data, remarks = encode_photograph(found, found.pixels, "TIFF")
    with Image.open(io.BytesIO(data)) as made:
        assert np.array_equal(np.asarray(made), found.pixels)
        assert made.getexif().get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05"
        assert made.getexif().get_ifd(0x8825)[1] == "N"
    assert not remarks


def test_resolution_that_is_none_is_not_kept(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.asarray(picture()), resolution=(1, 1))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        tags = [file.pages[0].tags[name] for name in ("XResolution", "YResolution")]
    for tag in tags:
        data[tag.valueoffset : tag.valueoffset + 8] = bytes(8)
    (tmp_path / "a.tif").write_bytes(data)
    found = read_photograph(tmp_path / "a.tif")
    assert "dpi" not in found.kept
    assert encode_photograph(found, found.pixels, "TIFF")[0]


def test_more_metadata_than_a_jpeg_has_room_for_is_left_out_and_told(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    found = read_photograph(tmp_path / "a.png")._replace(kept={"xmp": b"x" * 70_000})
    data, remarks = encode_photograph(found, found.pixels, "JPEG")
    assert data and remarks == ("not kept in a JPEG of 8 bits: XMP",)


@pytest.mark.parametrize(("format", "most"), [("JPEG", 65500), ("WEBP", 16383)])
def test_photograph_too_long_for_a_format_is_refused_before_any_work(
    format: str, most: int, tmp_path: Path
) -> None:
    picture().save(tmp_path / "a.png")
    found = read_photograph(tmp_path / "a.png")
    check_fits(found._replace(pixels=np.zeros((1, most, 3), np.uint8)), format)
    long = found._replace(pixels=np.zeros((most + 1, 1, 3), np.uint8))
    with pytest.raises(BadImage, match=f"more than a {format} holds"):
        check_fits(long, format)
    with pytest.raises(BadImage, match=f"cannot be written as {format}"):
        encode_photograph(long, long.pixels, format)


def test_damaged_profile_of_inks_does_not_stop_a_photograph(tmp_path: Path) -> None:
    picture().convert("CMYK").save(tmp_path / "a.tif", icc_profile=b"junk" * 50)
    assert read_photograph(tmp_path / "a.tif").pixels.shape == (30, 44, 3)

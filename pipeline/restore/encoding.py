"""Restored photographs as files, with what came with the degraded ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from datamodules.images import BadImage
from pipeline.restore.photographs import GREY_WITH_ALPHA, Photograph
from pipeline.restore.pictures import Canvas, grey, narrow

WIDE = {"PNG", "TIFF"}
"""Formats that can hold 16 bits."""
OPAQUE = {"JPEG", "BMP"}
"""Formats without transparency."""
HELD = {
    "PNG": {"exif", "icc_profile", "xmp", "dpi"},
    "JPEG": {"exif", "icc_profile", "xmp", "dpi"},
    "WEBP": {"exif", "icc_profile", "xmp"},
    "TIFF": {"exif", "icc_profile", "dpi"},
    "BMP": {"dpi"},
}
"""What is written of what a photograph carries, in files of 8 bits."""
HELD_WIDE = {"PNG": HELD["PNG"], "TIFF": {"icc_profile", "dpi"}}
"""Likewise, of 16 bits."""
NAMES = {"exif": "EXIF", "icc_profile": "the colour profile", "xmp": "XMP", "dpi": "the resolution"}
LONGEST = {"JPEG": 65500, "WEBP": 16383}
"""Longer side of an image that a format can hold, in pixels."""
ROOM = {"exif": 65533, "xmp": 65504}
"""Bytes that a JPEG has for them."""
UP = 2
"""A PNG's word for rows that are differences to those above."""
SUB_IFDS = {0x8769, 0x8825}
"""Tags of EXIF that Pillow writes into a TIFF only where it is not compressed: camera and GPS."""
SAVING: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}


def check_fits(photograph: Photograph, format: str) -> None:
    """Refuse a photograph that a format cannot hold, before it is restored.

    Raises:
        BadImage: it is too large.
    """
    height, width = photograph.pixels.shape[:2]
    most = LONGEST.get(format)
    if most and max(height, width) > most:
        raise BadImage(
            f"{width} x {height} pixels are more than a {format} holds; choose another format"
        )


def encode_photograph(
    photograph: Photograph, pixels: Canvas, format: str
) -> tuple[bytes, tuple[str, ...]]:
    """Encode restored pixels as a file like the one they came from.

    Args:
        photograph: the degraded one.
        pixels: `[H, W, 3]`, of its type.
        format: a name in FORMATS.

    Returns:
        The bytes of the file, and what could not be kept in this format.

    Raises:
        BadImage: it cannot be written so.
    """
    try:
        return _encode(photograph, pixels, format)
    except (RuntimeError, ValueError, OSError, struct.error) as error:
        raise BadImage(f"cannot be written as {format} ({error}); choose another") from error


def _encode(photograph: Photograph, pixels: Canvas, format: str) -> tuple[bytes, tuple[str, ...]]:
    remarks = list(photograph.remarks)
    if pixels.dtype == np.uint16 and format not in WIDE:
        remarks.append(f"{format} has 8 bits a channel, the photograph had 16")
        pixels = narrow(pixels)
        if photograph.alpha is not None:
            photograph = photograph._replace(alpha=narrow(photograph.alpha))
    if photograph.alpha is not None and format in OPAQUE:
        remarks.append(f"{format} has no transparency; it was left out")
        photograph = photograph._replace(alpha=None)
    array = grey(pixels)[..., None] if photograph.is_grey else pixels
    if photograph.alpha is not None:
        array = np.concatenate([array, photograph.alpha[..., None]], axis=2)
    held = HELD[format] if pixels.dtype == np.uint8 else HELD_WIDE[format]
    if format == "JPEG":
        held = held - {name for name, room in ROOM.items() if _size(photograph, name) > room}
    kept = {name: value for name, value in photograph.kept.items() if name in held}
    if lost := [NAMES[name] for name in photograph.kept if name not in held]:
        bits = 8 * pixels.itemsize
        remarks.append(f"not kept in a {format} of {bits} bits: {', '.join(lost)}")
    if pixels.dtype == np.uint8:
        return _encode_narrow(array, format, kept), tuple(remarks)
    encode = _encode_wide_png if format == "PNG" else _encode_wide_tiff
    return encode(array, kept), tuple(remarks)


def _encode_narrow(array: NDArray[Any], format: str, kept: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if format == "PNG" and "xmp" in kept:
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", kept["xmp"].decode("utf-8", "replace"))
        kept = {**kept, "pnginfo": info}
        del kept["xmp"]
    if format == "WEBP" and image.mode == "LA":
        image = image.convert("RGBA")
    options = SAVING.get(format, {})
    if format == "TIFF" and "exif" in kept:
        exif = Image.Exif()
        exif.load(kept["exif"])
        options = {} if SUB_IFDS & set(exif) else options
    image.save(buffer, format, **options, **kept)
    return buffer.getvalue()


def _size(photograph: Photograph, name: str) -> int:
    return len(photograph.kept.get(name, b""))


def _encode_wide_png(array: NDArray[Any], kept: dict[str, Any]) -> bytes:
    """OpenCV writes 16 bits and no metadata: those chunks are put in behind the header."""
    if array.shape[2] == 2:
        data = _grey_with_alpha(array)
    else:
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
        data = cv2.imencode(".png", array[..., order])[1].tobytes()
    chunks = b""
    if "icc_profile" in kept:
        chunks += _chunk(b"iCCP", b"ICC\0\0" + zlib.compress(kept["icc_profile"]))
    if "exif" in kept:
        chunks += _chunk(b"eXIf", kept["exif"].removeprefix(b"Exif\0\0"))
    if "dpi" in kept:
        metre = (round(float(dots) / 0.0254) for dots in kept["dpi"])
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *metre, 1))
    if "xmp" in kept:
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + kept["xmp"])
    header = 8 + 25
    return data[:header] + chunks + data[header:]


def _grey_with_alpha(array: NDArray[Any]) -> bytes:
    """A PNG of a kind that OpenCV does not write: each row as the difference to the one above."""
    height, width = array.shape[:2]
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    rows[1:] -= rows[:-1]
    filtered = np.insert(rows, 0, UP, axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, GREY_WITH_ALPHA, 0, 0, 0)
    content = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(filtered.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + content + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def _encode_wide_tiff(array: NDArray[Any], kept: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    across, down = kept.get("dpi", (0, 0))
    coloured, has_alpha = array.shape[2] > 2, array.shape[2] in (2, 4)
    tifffile.imwrite(
        buffer,
        array if array.shape[2] > 1 else array[..., 0],
        photometric="rgb" if coloured else "minisblack",
        extrasamples=["unassalpha"] if has_alpha else None,
        planarconfig="contig" if array.shape[2] > 1 else None,
        compression="zlib",
        iccprofile=kept.get("icc_profile"),
        resolution=(float(across), float(down)) if across else None,
        resolutionunit="inch" if across else None,
        metadata=None,
    )
    return buffer.getvalue()

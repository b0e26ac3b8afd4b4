"""Files of photographs: read with all they carry, and written back like them.

Pillow reads headers and whatever has 8 bits a channel. libvips reads and writes 16 bits, which
Pillow would narrow, through the loaders of PNG and TIFF alone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from datamodules.images import BadImage, pillow_faults

pyvips.block_untrusted_set(True)
pyvips.cache_set_max(0)  # photographs are read once each
logging.getLogger("pyvips").setLevel(logging.ERROR)  # it reports its threads

Canvas = NDArray[Any]
"""An RGB image `[H, W, 3]`: uint8 in 0..255, uint16 in 0..65535, or float32 in [0, 1]."""
LEVELS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}
"""The value of white by a canvas's type."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of grey, as Pillow has them."""
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}
"""Formats that are read and written, by Pillow's names, with the suffix of each."""
MULTI = "MPO"
"""A JPEG that holds further pictures behind the first, as of two lenses or other exposures."""
ORIENTATION = 0x0112
BITS, SAMPLE_FORMAT = 258, 339
"""TIFF tags: bits a sample, and whether it is an integer (1 or 2) or a float (3)."""
STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 282, 283, 284, 296, 317, 320),
    *(322, 323, 324, 325, 330, 332, 338, 339, 347, 529, 530, 531, 532, 700, 34675),
}
"""TIFF tags that describe how pixels are stored, or metadata that is kept apart from EXIF."""
SUB_IFDS = {0x8769, 0x8825}
"""EXIF tags that Pillow writes into a TIFF only without compression: camera and GPS."""

WIDE = {"PNG", "TIFF"}
"""Formats that can hold 16 bits a channel."""
OPAQUE = {"JPEG", "BMP"}
"""Formats without transparency."""
HELD = {
    "PNG": {"exif", "icc_profile", "xmp", "dpi"},
    "JPEG": {"exif", "icc_profile", "xmp", "dpi"},
    "WEBP": {"exif", "icc_profile", "xmp"},
    "TIFF": {"exif", "icc_profile", "dpi"},
    "BMP": {"dpi"},
}
"""Metadata that is written to files of 8 bits."""
HELD_WIDE = {"PNG": HELD["PNG"], "TIFF": {"icc_profile", "xmp", "dpi"}}
"""Metadata that is written to files of 16 bits."""
NAMES = {"exif": "EXIF", "icc_profile": "the colour profile", "xmp": "XMP", "dpi": "the resolution"}
VIPS_FIELDS = {"exif": "exif-data", "icc_profile": "icc-profile-data", "xmp": "xmp-data"}
NO_DPI = {"PNG": (0, 0), "TIFF": (72, 72)}
"""Resolution where a photograph has none: a TIFF must state one, and 72 is customary."""
LONGEST = {"JPEG": 65500, "WEBP": 16383}
"""Longer side of an image that a format can hold, in pixels."""
ROOM = {"exif": 65533, "xmp": 65504}
"""Bytes that a JPEG has for them."""
SAVING: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}


class Photograph(NamedTuple):
    """The contents of an image file, turned upright."""

    pixels: Canvas
    """`[H, W, 3]`, uint8 or uint16."""
    alpha: NDArray[Any] | None
    """`[H, W]`, of the pixels' type, not multiplied into the colours."""
    is_grey: bool
    format: str
    """A name in FORMATS."""
    kept: dict[str, Any]
    """Metadata for the restored file: `exif`, `icc_profile`, `xmp` and `dpi` where present."""
    remarks: tuple[str, ...]
    """What could not be kept."""


def read_photograph(path: Path) -> Photograph:
    """Read an image file.

    Raises:
        BadImage: it cannot be read, is not an image of FORMATS, or is damaged, animated,
            floating-point, or larger than is safe to open.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror})") from error
    with pillow_faults(str(path), len(data)), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error comes later
        with Image.open(io.BytesIO(data)) as image:
            _check_kind(image, path)
            is_wide = _bits(image, data, path) == 16
            if not is_wide or image.format == "PNG":  # metadata may follow the pixels
                image.load()
            return _photograph(image, _decode_wide(data, image.format, path) if is_wide else None)


def check_fits(photograph: Photograph, format: str) -> None:
    """Refuse a photograph that a format cannot hold, before it is restored.

    Raises:
        BadImage: it is too large.
    """
    height, width = photograph.pixels.shape[:2]
    longest = LONGEST.get(format)
    if longest and max(height, width) > longest:
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
        BadImage: the format cannot hold it.
    """
    try:
        return _encode(photograph, pixels, format)
    except (RuntimeError, ValueError, OSError, struct.error, pyvips.Error) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadImage(f"cannot be written as {format} ({reason}); choose another") from error


def grey(canvas: Canvas) -> Canvas:
    """Luma `[H, W]` of an RGB canvas, in its type."""
    mixed = np.tensordot(canvas, np.array(LUMA, dtype=np.float32), 1)
    return (mixed if canvas.dtype == np.float32 else np.rint(mixed)).astype(canvas.dtype)


def narrow(array: NDArray[Any]) -> NDArray[Any]:
    """A uint16 array scaled to uint8; any other as it is."""
    return np.rint(array / 257).astype(np.uint8) if array.dtype == np.uint16 else array


def _check_kind(image: Image.Image, path: Path) -> None:
    if image.format == MULTI:
        return
    if image.format not in FORMATS:
        known = ", ".join(FORMATS)
        raise BadImage(f"{path}: a {image.format} image; save it as one of {known}")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise BadImage(f"{path}: has {frames} frames or pages; save the one to restore by itself")


def _bits(image: Image.Image, data: bytes, path: Path) -> int:
    """Bits a sample, from the file's header."""
    if image.format == "PNG":
        return data[24]
    tags = getattr(image, "tag_v2", {})
    if 3 in np.atleast_1d(tags.get(SAMPLE_FORMAT, 1)):
        raise BadImage(
            f"{path}: a floating-point image without a defined white level; save it as 16-bit"
        )
    bits = int(np.max(tags.get(BITS, 8)))
    if bits > 8 and bits != 16:
        raise BadImage(f"{path}: has {bits} bits a sample; save it with 8 or 16")
    return bits


def _decode_wide(data: bytes, format: str | None, path: Path) -> NDArray[Any]:
    """Pixels of 16 bits, `[H, W]` or `[H, W, 2 to 4]`, as they are stored."""
    load = pyvips.Image.pngload_buffer if format == "PNG" else pyvips.Image.tiffload_buffer
    try:
        image = load(data, fail_on="error")
        if image.interpretation == "cmyk":
            image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=16)
        array: NDArray[Any] = image.numpy()
    except pyvips.Error as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadImage(f"{path}: damaged image ({reason})") from error
    if array.dtype != np.uint16 or image.interpretation not in {"grey16", "rgb16"}:
        raise BadImage(f"{path}: an unusual kind of image; save it as a PNG")
    return array


def _photograph(image: Image.Image, wide: NDArray[Any] | None) -> Photograph:
    orientation = image.getexif().get(ORIENTATION, 1)
    kept = _kept(image)
    format, remarks = str(image.format), []
    if format == MULTI:
        format = "JPEG"
        remarks.append("only the first of its pictures is restored")
    if image.mode == "CMYK":
        profile = kept.pop("icc_profile", None)  # it does not fit RGB
        remarks.append("CMYK became RGB")
        image = _from_cmyk(image, profile) if wide is None else image
    array = _upright(_arranged(image) if wide is None else wide, orientation)
    array = np.atleast_3d(array)
    alpha = array[..., -1].copy() if array.shape[2] in (2, 4) else None
    is_grey = array.shape[2] < 3
    pixels = np.repeat(array[..., :1], 3, axis=2) if is_grey else array[..., :3]
    return Photograph(np.ascontiguousarray(pixels), alpha, is_grey, format, kept, tuple(remarks))


def _kept(image: Image.Image) -> dict[str, Any]:
    exif = image.getexif()
    for tag in {ORIENTATION, *STRUCTURE} & set(exif):
        del exif[tag]
    kept = {"icc_profile": profile} if (profile := image.info.get("icc_profile")) else {}
    dpi = image.info.get("dpi")
    if dpi and all(math.isfinite(dots) and dots > 0 for dots in dpi):
        kept["dpi"] = dpi
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if xmp:
        text = xmp if isinstance(xmp, bytes) else str(xmp).encode()
        kept["xmp"] = re.sub(rb'(tiff:Orientation(?:="|>))\d', rb"\g<1>1", text)
    if len(exif):
        kept["exif"] = exif.tobytes()
    return kept


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the image's own profile of its inks."""
    if profile:
        inks, srgb = io.BytesIO(profile), ImageCms.createProfile("sRGB")
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a damaged profile, or not of inks
            found = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(inks), srgb, outputMode="RGB"
            )
            return found or image.convert("RGB")
    return image.convert("RGB")


def _arranged(image: Image.Image) -> NDArray[Any]:
    """Pixels `[H, W]` or `[H, W, 2 to 4]`, uint8: grey or RGB, and alpha where there is any."""
    colours = "L" if image.mode in {"1", "L", "LA"} else "RGB"
    return np.array(image.convert(f"{colours}A" if image.has_transparency_data else colours))


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation not in range(2, 9):
        return array
    image = pyvips.Image.new_from_array(array).copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    turned: NDArray[Any] = image.autorot().numpy()
    return turned


def _encode(photograph: Photograph, pixels: Canvas, format: str) -> tuple[bytes, tuple[str, ...]]:
    remarks, alpha = list(photograph.remarks), photograph.alpha
    if pixels.dtype == np.uint16 and format not in WIDE:
        remarks.append(f"{format} has 8 bits a channel, the photograph had 16")
        pixels, alpha = narrow(pixels), None if alpha is None else narrow(alpha)
    if alpha is not None and format in OPAQUE:
        remarks.append(f"{format} has no transparency; it was left out")
        alpha = None
    array = grey(pixels)[..., None] if photograph.is_grey else pixels
    if alpha is not None:
        array = np.concatenate([array, alpha[..., None]], axis=2)
    is_wide = pixels.dtype == np.uint16
    kept = {
        name: value
        for name, value in photograph.kept.items()
        if _is_held(name, value, format, is_wide, photograph.is_grey)
    }
    if lost := [NAMES[name] for name in photograph.kept if name not in kept]:
        remarks.append(f"not kept in a {format} of {8 * pixels.itemsize} bits: {', '.join(lost)}")
    return (_encode_wide if is_wide else _encode_narrow)(array, format, kept), tuple(remarks)


def _is_held(name: str, value: Any, format: str, is_wide: bool, is_grey: bool) -> bool:
    """Whether a format holds these metadata."""
    if is_wide and name == "icc_profile":  # libvips drops one that does not fit the colours
        return bool((value[16:20] == b"GRAY") == is_grey)
    if format == "JPEG" and name in ROOM:
        return len(value) <= ROOM[name]
    return name in (HELD_WIDE if is_wide else HELD)[format]


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


def _encode_wide(array: NDArray[Any], format: str, kept: dict[str, Any]) -> bytes:
    kind = "rgb16" if array.shape[2] > 2 else "grey16"
    across, down = (float(dots) / 25.4 for dots in kept.get("dpi", NO_DPI[format]))
    image = pyvips.Image.new_from_array(array, interpretation=kind).copy(xres=across, yres=down)
    for name, field in VIPS_FIELDS.items():
        if name in kept:
            image.set_type(pyvips.GValue.blob_type, field, kept[name])
    if format == "PNG":
        return bytes(image.pngsave_buffer())
    return bytes(
        image.tiffsave_buffer(compression="deflate", predictor="horizontal", resunit="inch")
    )

"""People's own files, read with all they carry."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from datamodules.images import BadImage, pillow_faults

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}
"""What is read and written, by Pillow's names, with the suffix of each."""
ORIENTATION = 0x0112
BITS, SAMPLES, PLANES, INK, EXTRA = 258, 339, 284, 262, 338
"""Tags of TIFF: bits of a sample, whether it is an integer (1) or a float (3), whether the colours
lie in planes of their own (2), whether 0 is white (0), and whether an alpha is multiplied into the
colours (1)."""
GREY_WITH_ALPHA = 4
"""A kind of PNG, as its header says."""
MULTI = "MPO"
"""A JPEG that holds further pictures behind the first, as of two lenses or other exposures."""
STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 282, 283, 284, 296, 317, 320),
    *(322, 323, 324, 325, 330, 332, 338, 339, 347, 529, 530, 531, 532, 700, 34675),
}
"""Tags of a TIFF that say how its pixels are stored, and what is kept apart from EXIF."""
TURNED: dict[int, Callable[[Any], Any]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""How to turn an array upright, by the orientation that EXIF says."""


class Photograph(NamedTuple):
    """An image file: its pixels, upright, and what goes into the restored one as it is."""

    pixels: NDArray[Any]
    """`[H, W, 3]`, uint8 or uint16."""
    alpha: NDArray[Any] | None
    """`[H, W]`, of the pixels' type."""
    is_grey: bool
    format: str
    """A name in FORMATS."""
    kept: dict[str, Any]
    """`exif`, `icc_profile`, `xmp` and `dpi`, those that there are."""
    remarks: tuple[str, ...]
    """What could not be kept."""


def read_photograph(path: Path) -> Photograph:
    """Read an image file.

    Raises:
        BadImage: it cannot be read, or is no image of FORMATS, damaged, animated, of floats, or
            of more pixels than is safe to open.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror})") from error
    with pillow_faults(str(path), len(data)), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error comes later
        with Image.open(io.BytesIO(data)) as image:
            _check_kind(image, path)
            bits = _bits(image, data, path)
            image.load()
            if bits < 16:
                return _photograph(image, None)
            wide = _decode_wide(data, path)
            if image.format == "PNG":
                wide = _as_png_says(wide, image, data)
            is_negative = getattr(image, "tag_v2", {}).get(INK) == 0
            return _photograph(image, 65535 - wide if is_negative else wide)


def _check_kind(image: Image.Image, path: Path) -> None:
    if image.format == MULTI:
        return
    if image.format not in FORMATS:
        known = ", ".join(FORMATS)
        raise BadImage(f"{path}: a {image.format} image; save it as one of {known}")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise BadImage(f"{path}: has {frames} frames or pages; save the one to restore by itself")


def _bits(image: Image.Image, data: bytes, path: Path) -> int:
    """Of a sample, by the file's header."""
    if image.format == "PNG":
        return data[24]
    tags = getattr(image, "tag_v2", {})
    if 3 in np.atleast_1d(tags.get(SAMPLES, 1)):
        raise BadImage(f"{path}: an image of floats, whose white is unknown; save it with 16 bits")
    bits = int(np.max(tags.get(BITS, 8)))
    if bits > 8 and bits != 16:
        raise BadImage(f"{path}: has {bits} bits a sample; save it with 8 or 16")
    if bits == 16 and tags.get(PLANES) == 2:
        raise BadImage(f"{path}: its colours lie in separate planes; save it interleaved")
    if bits == 16 and 1 in np.atleast_1d(tags.get(EXTRA, 0)):
        raise BadImage(
            f"{path}: its alpha is multiplied into its colours; save it with straight alpha"
        )
    return bits


def _photograph(image: Image.Image, wide: NDArray[Any] | None) -> Photograph:
    exif = image.getexif()
    turn = TURNED.get(exif.get(ORIENTATION, 1), lambda a: a)
    kept = _kept(image, exif)
    remarks: list[str] = []
    format = "JPEG" if image.format == MULTI else str(image.format)
    if image.format == MULTI:
        remarks.append("only the first of its pictures is restored")
    if image.mode == "CMYK":
        image = _from_cmyk(image, kept)
        remarks.append("CMYK became RGB")
    if wide is None:
        is_grey = image.mode in {"1", "L", "LA"}
    else:
        is_grey = wide.ndim == 2 or wide.shape[2] == 2
    array = _arranged(image) if wide is None else wide
    colours, alpha = _split(turn(array))
    return Photograph(colours, alpha, is_grey, format, kept, tuple(remarks))


def _kept(image: Image.Image, exif: Image.Exif) -> dict[str, Any]:
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


def _from_cmyk(image: Image.Image, kept: dict[str, Any]) -> Image.Image:
    """By the image's own profile, which says what its inks are; it does not fit RGB."""
    profile = kept.pop("icc_profile", None)
    if profile:
        inks, srgb = io.BytesIO(profile), ImageCms.createProfile("sRGB")
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a damaged profile, or not of inks
            found = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(inks), srgb, outputMode="RGB"
            )
            return found or image.convert("RGB")
    return image.convert("RGB")


def _arranged(image: Image.Image) -> NDArray[Any]:
    """Pixels `[H, W]` or `[H, W, 2 to 4]`, uint8."""
    if image.mode in {"1", "L"} and "transparency" not in image.info:
        return np.array(image.convert("L"))
    if image.mode == "LA":
        return np.array(image)
    return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _split(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """RGB and alpha of grey, grey and alpha, RGB, or RGBA."""
    if array.ndim == 2:
        array = array[..., None]
    alpha = array[..., -1] if array.shape[2] in (2, 4) else None
    colours = array[..., :-1] if alpha is not None else array
    if colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    return np.ascontiguousarray(colours), None if alpha is None else np.ascontiguousarray(alpha)


def _decode_wide(data: bytes, path: Path) -> NDArray[Any]:
    """Of 16 bits, which Pillow would narrow to 8."""
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if array is None or array.dtype != np.uint16:
        raise BadImage(f"{path}: damaged image, or of an unusual kind; save it as a PNG anew")
    if array.ndim == 3 and array.shape[2] >= 3:
        array[..., :3] = array[..., 2::-1].copy()  # OpenCV has BGR
    return array


def _as_png_says(wide: NDArray[Any], image: Image.Image, data: bytes) -> NDArray[Any]:
    """Grey with alpha, of which OpenCV makes colours, or with a transparent level, which it passes
    over: `[H, W, 2]`. Anything else as it is.
    """
    if data[25] == GREY_WITH_ALPHA:
        return wide[..., [0, 3]]
    clear = image.info.get("transparency")
    if clear is None or wide.ndim == 3:
        return wide
    return np.dstack([wide, np.where(wide == clear, 0, 65535).astype(np.uint16)])

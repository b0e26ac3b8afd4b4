"""Reading and writing images: everything inside the project is RGB, 8 bit, `[H, W, 3]`."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
"""An RGB image `[H, W, 3]`, uint8."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})

SWAPPED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

_ENCODED_FAULTS = (OSError, SyntaxError, ValueError, OverflowError, Image.DecompressionBombError)
_PILLOW_FAULTS = (*_ENCODED_FAULTS, TypeError, struct.error)  # the last two are about EXIF
"""What Pillow raises for damaged images."""


class BadImage(ValueError):
    """An image that cannot be used; the message says which and why."""


def read_image(path: Path) -> Pixels:
    """Read an image file as RGB.

    Raises:
        BadImage: the file is missing, no image, truncated, or of an unsupported kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror})") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> Pixels:
    """Decode an encoded image.

    It is turned as its EXIF orientation says; grey becomes RGB, 16 bit is scaled to 8, opaque
    alpha is dropped.

    Args:
        data: the bytes of an image file.
        name: what to call it in errors.

    Raises:
        BadImage: not an image, truncated, transparent, or of an unsupported kind.
    """
    with pillow_faults(name, len(data)), Image.open(io.BytesIO(data)) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), name)


@contextmanager
def pillow_faults(name: str, size: int | None = None) -> Iterator[None]:
    """Turn what Pillow raises for an image file into BadImage, with its name and size in bytes."""
    try:
        yield
    except UnidentifiedImageError as error:
        length = "" if size is None else f" ({size} bytes)"
        raise BadImage(f"{name}: not an image{length}") from error
    except _PILLOW_FAULTS as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(f"{name}: damaged image ({error})") from error


def image_size(file: Path | BinaryIO, name: str) -> tuple[int, int]:
    """Height and width by an image's header, as `decode_image` turns it.

    Args:
        file: a path, or an open file.
        name: what to call it in errors.

    Raises:
        BadImage: it is no image.
    """
    with pillow_faults(name), Image.open(file) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation) in SWAPPED
        return (image.width, image.height) if turned else (image.height, image.width)


def _to_rgb(image: Image.Image, name: str) -> Pixels:
    if image.mode.startswith("I"):  # 16-bit grey
        wide = np.asarray(image, dtype=np.float64)
        grey = np.rint(wide / 257).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise BadImage(f"{name}: floating-point image; save it as 8- or 16-bit PNG")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise BadImage(f"{name}: has transparent pixels; flatten it onto a background first")
    return np.array(image.convert("RGB"))


def count_pixels(path: Path) -> int:
    """Width times height by the file's header, 0 where it is not an image."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except _PILLOW_FAULTS:
        return 0


def encode_png(image: Pixels) -> bytes:
    """Encode an image as PNG, losslessly and reproducibly."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def encode_npy(image: Pixels) -> bytes:
    """Encode an image as a NumPy array file: 3 bytes a pixel, from which any rows can be read."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(image), version=(1, 0))
    return buffer.getvalue()


ENCODERS: Mapping[str, Callable[[Pixels], bytes]] = {"npy": encode_npy, "png": encode_png}
"""How images may be stored in shards, by file suffix."""


def content_hash(image: Pixels) -> str:
    """SHA-256 of the pixels and the size: equal pictures share it, however they are encoded."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, sorted by name; hidden ones are no images.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found = (p for p in folder.iterdir() if not p.name.startswith("."))
    images = sorted(p for p in found if p.suffix.lower() in SUFFIXES)
    if not images:
        raise FileNotFoundError(f"no image in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return images

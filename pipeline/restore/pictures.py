"""Images as people hold them in Python, and back: files, Pillow's, arrays, tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.restore.image_io import (
    LEVELS,
    Canvas,
    Photograph,
    grey,
    narrow,
    read_photograph,
)

Picture = Image.Image | NDArray[Any] | Tensor
"""What a restoration is given back as."""
Given = str | os.PathLike[str] | Picture
"""What can be restored."""

WANTED = (
    "give a path, a Pillow image, an array [H, W] or [H, W, 3] (uint8, uint16, or floats in "
    "[0, 1]), or a tensor [3, H, W] or [B, 3, H, W] of floats in [0, 1]"
)


class Opened(NamedTuple):
    """An image to work on, and how to give such a one back as what came in."""

    canvas: Canvas
    give_back: Callable[[Any], Picture]


def open_picture(given: Given) -> Opened:
    """Make a canvas of one image.

    Raises:
        BadImage: a file cannot be used.
        ValueError: it is something else, or of a wrong shape, type or range.
    """
    if isinstance(given, (str, os.PathLike)):
        return _open_photograph(read_photograph(Path(given)))
    if isinstance(given, Image.Image):
        return _open_pillow(given)
    if isinstance(given, np.ndarray):
        return _open_array(given)
    if isinstance(given, Tensor):
        return _open_tensor(given)
    raise ValueError(f"a {type(given).__name__} is no image; {WANTED}")


def check_canvas(canvas: Canvas) -> None:
    """Refuse what is no canvas.

    Raises:
        ValueError: wrong shape or type, or floats that are not in [0, 1].
    """
    if canvas.dtype not in LEVELS or canvas.ndim != 3 or canvas.shape[2] != 3 or not canvas.size:
        raise ValueError(f"found an array {list(canvas.shape)} of {canvas.dtype}; {WANTED}")
    if canvas.dtype == np.float32:
        _check_range(float(canvas.min()), float(canvas.max()))


def _open_photograph(photograph: Photograph) -> Opened:
    """Given back with 8 bits, for Pillow has no colours of 16."""

    def give_back(canvas: Canvas) -> Picture:
        restored = Image.fromarray(narrow(grey(canvas) if photograph.is_grey else canvas))
        if photograph.alpha is not None:
            restored.putalpha(Image.fromarray(narrow(photograph.alpha)))
        return restored

    return Opened(photograph.pixels, give_back)


def _open_pillow(image: Image.Image) -> Opened:
    if image.mode == "F":
        raise ValueError(
            "found a floating-point Pillow image (mode F) without a defined white level; "
            "give an array"
        )
    if image.mode.startswith("I"):  # 16-bit grey
        wide = np.asarray(image, dtype=np.int64).clip(0, 65535).astype(np.uint16)
        return Opened(_coloured(wide), lambda canvas: Image.fromarray(grey(canvas)))
    if image.mode in {"1", "L"}:
        return Opened(
            np.array(image.convert("RGB")), lambda canvas: Image.fromarray(canvas).convert("L")
        )
    if image.has_transparency_data:
        return _open_transparent(image.convert("RGBA"), is_grey=image.mode == "LA")
    return Opened(np.array(image.convert("RGB")), Image.fromarray)


def _open_transparent(image: Image.Image, is_grey: bool) -> Opened:
    """The alpha is kept as it is."""
    alpha = image.getchannel("A")

    def give_back(canvas: Canvas) -> Picture:
        restored = Image.fromarray(canvas).convert("L" if is_grey else "RGB")
        restored.putalpha(alpha)
        return restored

    return Opened(np.array(image.convert("RGB")), give_back)


def _open_array(array: NDArray[Any]) -> Opened:
    kind, flat = array.dtype, array.ndim == 2
    if kind not in LEVELS and not np.issubdtype(kind, np.floating):
        raise ValueError(f"found an array {list(array.shape)} of {kind}; {WANTED}")
    canvas = array if kind in LEVELS else array.astype(np.float32)
    canvas = _coloured(canvas) if flat else canvas
    check_canvas(canvas)
    return Opened(canvas, lambda made: (grey(made) if flat else made).astype(kind, copy=False))


def _open_tensor(tensor: Tensor) -> Opened:
    if not tensor.is_floating_point() or tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"found a tensor {list(tensor.shape)} of {tensor.dtype}; {WANTED}")
    canvas = tensor.detach().float().cpu().permute(1, 2, 0).numpy()
    check_canvas(canvas)
    return Opened(canvas, lambda made: torch.from_numpy(made).permute(2, 0, 1).to(tensor))


def _coloured(array: NDArray[Any]) -> Canvas:
    return np.repeat(array[..., None], 3, axis=2)


def _check_range(low: float, high: float) -> None:
    if not (low >= 0 and high <= 1):  # which NaN fails, too
        raise ValueError(
            f"found floats from {low:g} to {high:g}, where an image has 0 to 1; scale it, and "
            "look for NaN and infinite values"
        )

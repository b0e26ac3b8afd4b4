"""Figures of a restoration: before beside after, the steps in between, and the uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.restore.api import Progress
from pipeline.restore.image_io import LEVELS, Canvas

SIDE = 1600
"""Longest side of an image in a comparison, in pixels."""
STEP_SIDE = 320
"""Longest side of an image in a strip of steps."""
GAP = 8
"""Between images, in pixels."""


def comparison(degraded: Canvas, restored: Canvas, found: str) -> Image.Image:
    """The degraded image, with what was found in it, beside the restored one."""
    return _row([(found, thumbnail(degraded, SIDE)), ("restored", thumbnail(restored, SIDE))])


def thumbnail(canvas: Canvas, side: int) -> NDArray[np.uint8]:
    """An image in uint8, shrunk where its longer side is more than `side` pixels."""
    height, width, _ = canvas.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    levels: NDArray[np.uint8] = np.rint(small * (255 / LEVELS[canvas.dtype])).astype(np.uint8)
    return levels


def uncertainty_map(deviation: NDArray[np.float32]) -> Image.Image:
    """Standard deviations `[H, W]` as colours, from dark for none to bright for the largest."""
    largest = max(float(deviation.max()), 1e-6)
    levels = np.rint(deviation / largest * 255).astype(np.uint8)
    coloured = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return Image.fromarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB))


class StepStrip:
    """The network's estimate of the restored image after each of its calls, side by side."""

    def __init__(self, degraded: Canvas, steps: int) -> None:
        """Start from the degraded image `[H, W, 3]`."""
        self._steps, self._size = steps, degraded.shape[:2]
        small = thumbnail(degraded, STEP_SIDE)
        self._pictures = [small.copy() for _ in range(steps + 1)]

    def add(self, progress: Progress) -> None:
        """Paste the estimate of a tile after a call into the picture of that step."""
        picture = self._pictures[(progress.done - 1) % self._steps + 1]
        (height, width), tile = self._size, progress.tile
        rows, columns, _ = picture.shape
        top, left = tile.top * rows // height, tile.left * columns // width
        bottom = max(top + 1, (tile.top + tile.height) * rows // height)
        right = max(left + 1, (tile.left + tile.width) * columns // width)
        state = np.rint(progress.state().permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        place = picture[top:bottom, left:right]
        place[:] = cv2.resize(state, place.shape[1::-1], interpolation=cv2.INTER_AREA)

    def picture(self) -> Image.Image:
        """The strip."""
        labels = ["degraded", *(f"call {i + 1} of {self._steps}" for i in range(self._steps))]
        return _row(list(zip(labels, self._pictures, strict=True)))


def _row(pictures: Sequence[tuple[str, NDArray[np.uint8]]]) -> Image.Image:
    """Pictures of one size side by side, each below its label."""
    height, width, _ = pictures[0][1].shape
    size = max(11, min(28, width // 14))
    bar, step = size + 2 * GAP, width + GAP
    row = Image.new("RGB", (len(pictures) * step - GAP, height + bar), "white")
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(size)
    for i, (label, picture) in enumerate(pictures):
        draw.text((i * step + GAP, GAP // 2), label, fill="black", font=font)
        row.paste(Image.fromarray(picture), (i * step, bar))
    return row

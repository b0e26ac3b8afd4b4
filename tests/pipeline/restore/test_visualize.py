"""Figures that show a restoration."""

from __future__ import annotations

import numpy as np
import torch

from modules.inference.tiling import Window, spans
from pipeline.restore.api import Progress
from pipeline.restore.visualize import GAP, STEP_SIDE, StepStrip


def test_tiles_fill_each_picture_of_a_strip_to_its_edges() -> None:
    """Sides that no tile divides, in an image larger than the strip shows it."""
    height, width, steps = 701, 933, 2
    strip = StepStrip(np.zeros((height, width, 3), np.uint8), steps)
    windows = [
        Window(top, left, bottom - top, right - left)
        for top, bottom in spans(height, 256)
        for left, right in spans(width, 256)
    ]
    total = len(windows) * steps
    for number, window in enumerate(windows):
        for step, level in enumerate((0.4, 1.0)):
            state = torch.full((3, window.height, window.width), level)
            done = number * steps + step + 1
            strip.add(Progress(done, total, lambda state=state: state, window))  # type: ignore[misc]
    row = np.asarray(strip.picture())
    shown = round(height * STEP_SIDE / width)
    pictures = [row[-shown:, x : x + STEP_SIDE] for x in range(0, row.shape[1], STEP_SIDE + GAP)]
    assert [np.unique(picture).tolist() for picture in pictures] == [[0], [102], [255]]

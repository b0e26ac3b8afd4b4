"""Captioners that note what they are given and by which rank, and the captions stage's bare work.

CAPTION_LOG names the file for the notes, CAPTION_PAUSE the seconds that a batch takes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.captioners import Captioner
from modules.captioning.blip import BlipCaptioner
from pipeline.compose import load_config
from pipeline.stages.captions import STAGE


def note(sources: Sequence[str]) -> None:
    with Path(os.environ["CAPTION_LOG"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps([os.environ.get("RANK", "0"), list(sources)]) + "\n")


class Slow(Captioner):
    """The mean colour as text, after a pause."""

    def caption(self, images: Sequence[np.ndarray], sources: Sequence[str]) -> list[str]:
        note(sources)
        time.sleep(float(os.environ.get("CAPTION_PAUSE", "0")))
        return [f"{s} has colour {i.mean():.3f}" for s, i in zip(sources, images, strict=True)]


class NotingBlip(BlipCaptioner):
    """BLIP as it is."""

    def caption(self, images: Sequence[np.ndarray], sources: Sequence[str]) -> list[str]:
        note(sources)
        return super().caption(images, sources)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    config = load_config(sys.argv[1:])
    folder = Path(config.run_dir) / "captions"
    folder.mkdir(exist_ok=True)
    STAGE.run(config, folder)

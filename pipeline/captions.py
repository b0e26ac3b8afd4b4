"""Stage: a caption for every clean image of the shards."""

from __future__ import annotations

import logging
from pathlib import Path

from datamodules.captions import write_captions
from datamodules.reader import ShardSet
from modules.captioners import Captioner
from pipeline.config import Config, build
from pipeline.stages import SHARDS

log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> None:
    """Caption the clean images of both splits."""
    captioner: Captioner = build(config.captions.captioner)
    shards = SHARDS.folder(config)
    samples = [s for split in ("train", "val") for s in ShardSet(shards, split).all()]
    images = write_captions(
        samples, folder, captioner.caption, captioner.by, config.captions.batch_size
    )
    log.info("%d clean images captioned by %s, for %d pairs", images, captioner.by, len(samples))

"""Stage: pairs of degraded and clean images into WebDataset shards."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from datamodules.pairs import PairSource
from datamodules.shards import write_shards
from pipeline.config import Config, build

log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> None:
    """Make the shards of both splits."""
    source: PairSource = build(config.shards.source)
    shards = write_shards(
        source.plan(),
        folder,
        samples_per_shard=config.shards.samples_per_shard,
        max_skipped_share=config.shards.max_skipped_share,
        workers=config.workers,
    )
    for split in ("train", "val"):
        counts = Counter({s.word: s.count for s in shards if s.split == split})
        log.info("%s: %d pairs of %d tasks", split, counts.total(), len(counts))
    for line in (line for shard in shards for line in shard.skipped):
        log.warning("left out %s", line)

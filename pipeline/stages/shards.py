"""Stage: pairs of degraded and clean images into WebDataset shards; and checking them."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from datamodules.shards.index import Shard, read_index
from datamodules.shards.verify import verify_shards
from datamodules.shards.writer import Format, write_shards
from datamodules.sources.existing import ExistingShards
from pipeline.chain import SHARDS
from pipeline.config import Config, build

log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> None:
    """Make the shards of both splits, or link to those that are ready."""
    source = build(config.shards.source)
    shards = (
        source.link(folder)
        if isinstance(source, ExistingShards)
        else write_shards(
            source.plan(),
            folder,
            Format(**vars(config.shards.format)),
            config.shards.max_skipped_fraction,
            config.num_workers,
        )
    )
    for split in ("train", "val"):
        counts = _counts([shard for shard in shards if shard.split == split])
        shown = ", ".join(f"{word} {count}" for word, count in sorted(counts.items()))
        log.info("%s: %s", split, shown or "nothing")
    for line in (line for shard in shards for line in shard.skipped):
        log.warning("left out %s", line)


def verify(config: Config) -> None:
    """Check the shards of a run.

    Raises:
        ValueError: they have faults, which are logged.
    """
    folder = SHARDS.folder(config)
    faults = 0
    for fault in verify_shards(folder, config.num_workers):
        log.error("%s", fault)
        faults += 1
    shards = read_index(folder)
    if faults:
        raise ValueError(
            f"{faults} faults in the {len(shards)} shards of {folder}. If this run made them, "
            f"delete the named files and {folder / 'index.json'}, and run `make shards`: only "
            "these are made again. If they are from elsewhere, get the named ones again from there"
        )
    size = sum(shard.bytes for shard in shards)
    samples = sum(shard.count for shard in shards)
    log.info("%d shards, %d samples, %.1f MB: whole", len(shards), samples, size / 1e6)


def _counts(shards: list[Shard]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(dict.fromkeys(shard.words, shard.count))
    return counts

"""Stage: pairs of degraded and clean images into WebDataset shards; and checking them."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from datamodules.shards.index import INDEX, read_index
from pipeline.config import Config, Node, Section, build
from pipeline.stage import Stage

if TYPE_CHECKING:
    from datamodules.shards.index import Shard

log = logging.getLogger(__name__)


class FormatConfig(Section):
    """How samples are stored; see `datamodules.shards.writer.Format`."""

    encoding: str
    tile_size: int | None
    shard_mb: float


class ShardsConfig(Section, name="shards"):
    """Making shards."""

    source: Node
    format: FormatConfig
    max_skipped_fraction: float = Field(ge=0)


def shard_index(config: Config) -> Path:
    """What the stage makes: the list of shards with their hashes."""
    return STAGE.folder(config) / INDEX


def verify(config: Config) -> None:
    """Check the shards of a run.

    Raises:
        ValueError: they have faults, which are logged.
    """
    from datamodules.shards.verify import verify_shards

    folder = STAGE.folder(config)
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


def _check(config: Config) -> None:
    """Refuse a format that there is not."""
    from datamodules.shards.writer import Format

    Format(**config[ShardsConfig].format.model_dump())


def _run(config: Config, folder: Path) -> None:
    """Make the shards of both splits, or link to those that exist."""
    from datamodules.shards.writer import Format, write_shards
    from datamodules.sources.existing import ExistingShards

    settings = config[ShardsConfig]
    source = build(settings.source)
    shards = (
        source.link(folder)
        if isinstance(source, ExistingShards)
        else write_shards(
            source.plan(),
            folder,
            Format(**settings.format.model_dump()),
            settings.max_skipped_fraction,
            config.num_workers,
        )
    )
    for split in ("train", "val"):
        counts = _counts([shard for shard in shards if shard.split == split])
        shown = ", ".join(f"{word} {count}" for word, count in sorted(counts.items()))
        log.info("%s: %s", split, shown or "nothing")
    for line in (line for shard in shards for line in shard.skipped):
        log.warning("left out %s", line)


def _source_files(config: Config) -> list[Path]:
    files: list[Path] = build(config[ShardsConfig].source).files()
    return files


def _counts(shards: list[Shard]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in shards:
        counts.update(dict.fromkeys(shard.words, shard.count))
    return counts


STAGE = Stage(
    name="shards",
    command="shards",
    sections=["shards.source", "shards.format"],
    outputs=[INDEX],
    inputs=lambda config: [],
    many_inputs=_source_files,
    check=_check,
    run=_run,
)

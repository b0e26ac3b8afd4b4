"""Stage: a caption for every clean image of the shards, on any number of processes."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field

from datamodules.captioners import Captioner
from datamodules.captions import CAPTIONS
from pipeline.config import Config, Node, Section, build
from pipeline.distributed import current_rank, use_own_gpu
from pipeline.stage import Stage
from pipeline.stages import shards

log = logging.getLogger(__name__)


class CaptionsConfig(Section, name="captions"):
    """Captioning the clean images."""

    captioner: Node
    batch_size: int = Field(ge=1)


def caption_file(config: Config) -> Path:
    """What the stage makes."""
    return STAGE.folder(config) / CAPTIONS


def _run(config: Config, folder: Path) -> None:
    """Caption the clean images of both splits, together with the other processes of the run."""
    from datamodules.captions import write_captions
    from datamodules.shards.index import read_index
    from datamodules.shards.reader import ShardSet

    rank = current_rank()
    use_own_gpu(rank)
    captioner: Captioner = build(config[CaptionsConfig].captioner)
    made = shards.STAGE.folder(config)
    splits = sorted({shard.split for shard in read_index(made)})
    samples = [sample for split in splits for sample in ShardSet(made, split).all()]
    counts = write_captions(
        samples,
        folder,
        captioner.caption,
        captioner.by,
        config[CaptionsConfig].batch_size,
        rank=rank.rank,
        world=rank.world,
        check=captioner.check,
    )
    if rank.rank > 0:
        log.info("rank %d is done", rank.rank)
        return
    log.info(
        "%d clean images captioned by %s, for %d samples",
        counts.captioned,
        captioner.by,
        len(samples),
    )
    if counts.damaged:
        log.warning("%d damaged, without captions: see %s", counts.damaged, folder / CAPTIONS)


def _inputs(config: Config) -> list[Path]:
    files: list[Path] = build(config[CaptionsConfig].captioner).files()
    return [shards.shard_index(config), *files]


STAGE = Stage(
    name="captions",
    command="captions",
    sections=["captions"],
    outputs=[CAPTIONS],
    needs=lambda config: [shards.STAGE],
    inputs=_inputs,
    check=lambda config: None,
    run=_run,
    parallel=True,
)

"""Stage: a caption for every clean image of the shards, on any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from datamodules.captioners import Captioner, FileCaptioner
from datamodules.captions import CAPTIONS, read_captions, write_captions
from datamodules.degradations import WORDS
from datamodules.images import Pixels, content_hash
from datamodules.shards.index import read_index
from datamodules.shards.reader import ShardSet
from pipeline.chain import SHARDS
from pipeline.config import Config, build
from pipeline.distributed import current_rank

log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> None:
    """Caption the clean images of both splits, together with the other processes of the run."""
    rank, world, local = current_rank()
    use_gpu(local)
    captioner: Captioner = build(config.captions.captioner)
    shards = SHARDS.folder(config)
    splits = sorted({shard.split for shard in read_index(shards)})
    samples = [sample for split in splits for sample in ShardSet(shards, split).all()]
    counts = write_captions(
        samples,
        folder,
        captioner.caption,
        captioner.by,
        config.captions.batch_size,
        rank=rank,
        world=world,
        check=captioner.check,
    )
    if rank > 0:
        log.info("rank %d is done", rank)
        return
    log.info(
        "%d clean images captioned by %s, for %d samples",
        counts.captioned,
        captioner.by,
        len(samples),
    )
    if counts.damaged:
        log.warning("%d damaged, without captions: see %s", counts.damaged, folder / CAPTIONS)


class CaptionsOfRun(Captioner):
    """The captions that another run has made of the same images, told by their content."""

    def __init__(self, path: str) -> None:
        """Take them from its `captions.jsonl`."""
        self._path = Path(path)
        self._captions: dict[str, str] | None = None

    @property
    def by(self) -> str:
        """The file."""
        return str(self._path)

    def files(self) -> list[Path]:
        """The file."""
        return [self._path]

    def caption(self, images: Sequence[Pixels], sources: Sequence[str]) -> list[str]:
        """Look the captions up; an image without one counts as damaged."""
        if self._captions is None:
            self._captions = read_captions(self._path)
        return [self._captions.get(content_hash(image), "") for image in images]


def use_gpu(local: int) -> None:
    """Make a GPU of its own torch's current one for each process of a machine.

    A process may see all GPUs of the machine, or only its own.
    """
    if local == 0:
        return
    import torch

    if count := torch.cuda.device_count():
        torch.cuda.set_device(local % count)


def captions_from_file(path: str | Sequence[str]) -> FileCaptioner:
    """Captions that exist already; the words of all degradations may end a title."""
    return FileCaptioner(path, WORDS)

"""The caption file of a set of shards: JSON lines, one for each clean image, by content hash.

It lies beside the shards, not in them, so that captions can change without rewriting any.

Any number of processes, "ranks", make it together; they share its folder and nothing else. The
distinct clean images, in the order of the samples, are cut into batches by position, so which
images are captioned together depends on nothing else; batch b is of rank b % world. What any rank
has finished is kept through kills, whatever the number of ranks afterwards. A rank ends when its
batches are done; rank 0 then waits for the others, takes over what they leave undone (see
`Share.finish_others`), and writes the file in the order of the samples. Where there is a caption
file already, there is nothing to do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from datamodules.caption_entries import Caption, CaptionEntries
from datamodules.clean_images import CleanImage, clean_images
from datamodules.files import atomic_write, remove_partial
from datamodules.ledger import Ledger, Line, remove_ledgers
from datamodules.shards.reader import SampleAddress
from datamodules.shares import Share

log = logging.getLogger(__name__)

NAME = "captions"
CAPTIONS = f"{NAME}.jsonl"


class Counts(NamedTuple):
    """How many clean images have a caption, and how many images or samples are damaged."""

    captioned: int
    damaged: int


def read_captions(path: Path) -> dict[str, str]:
    """The captions by the SHA-256 of the clean image's pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no captions {path}; run `make captions` first")
    return {e["gt_sha256"]: e["caption"] for e in _read(path) if "damaged" not in e}


def write_captions(
    samples: Sequence[SampleAddress],
    folder: Path,
    caption: Caption,
    by: str,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    check: Callable[[Sequence[str]], None] | None = None,
) -> Counts:
    """Caption every distinct clean image once, together with the other ranks.

    A damaged image or sample is logged, recorded in the file with the reason, and stops nothing.

    Args:
        samples: the same on every rank.
        folder: for these samples and this captioner alone.
        caption: the captioner; an empty caption counts as none.
        by: its name, for the record.
        batch_size: images to caption at once.
        rank: number of this process.
        world: number of processes.
        check: given all sources before the work starts, raises where it cannot be done.

    Returns:
        What this rank has seen done by any; on rank 0, everything.

    Raises:
        OSError: the folder cannot be written.
    """
    target = folder / CAPTIONS
    if target.is_file():
        entries = list(_read(target))
    else:
        images, damaged = clean_images(samples, quiet=rank > 0)
        for reason in dict.fromkeys(damaged):
            log.warning("not captioned: %s", reason)
        if check is not None:
            check([image.source for image in images])
        plan = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        entries = _caption(plan, target, caption, by, rank, world)
        entries += [{"damaged": reason} for reason in damaged]
        if rank == 0:
            _write(target, entries)
    if rank == 0:
        remove_ledgers(folder, NAME)
        remove_partial(folder)
    return Counts(sum("caption" in e for e in entries), sum("damaged" in e for e in entries))


def _caption(
    plan: Sequence[Sequence[CleanImage]],
    target: Path,
    caption: Caption,
    by: str,
    rank: int,
    world: int,
) -> list[Line]:
    parts = Ledger(target.parent, NAME, rank, [[image.digest for image in batch] for batch in plan])
    with (
        closing(CaptionEntries(caption, by)) as entries,
        closing(Share(plan, parts, entries.read, entries.caption, NAME, quiet=rank > 0)) as share,
    ):
        share.finish(range(rank, len(plan), world), stop=target.is_file)
        if rank == 0:
            share.finish_others()
    if target.is_file():  # rank 0 has given this rank up, and removed the other parts
        parts.remove_own()
    return parts.lines()


def _write(path: Path, entries: Sequence[Line]) -> None:
    with atomic_write(path) as file:
        for entry in entries:
            file.write(f"{json.dumps(entry, ensure_ascii=False)}\n".encode())


def _read(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if "damaged" not in entry and not {"gt_sha256", "caption"} <= entry.keys():
                    raise ValueError("no caption")
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}:{number} is damaged ({error}); make the captions again"
                ) from error
            yield entry

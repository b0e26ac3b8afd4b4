"""The caption file of a set of shards: JSON lines, one for each clean image, by content hash.

It lies beside the shards, not in them, so that captions can change without rewriting any.

Any number of ranks make it together; they share its folder and nothing else (see
`datamodules.work_queue`). The distinct clean images, in the order of the samples, are cut into
batches by position, so which images are captioned together depends on nothing else. Rank 0 writes
the file in the order of the samples when all batches are done. An existing caption file is kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from datamodules.files import atomic_write, remove_partial
from datamodules.images import BadImage, Pixels
from datamodules.shards.index import BadShard
from datamodules.shards.reader import SampleAddress
from datamodules.work_queue import Line, remove_parts, run_batches

log = logging.getLogger(__name__)

CAPTIONS = "captions.jsonl"
THREADS = 4
"""Threads that read samples or decode images."""
CHUNK = 256
"""Samples that a thread takes at a time."""

Caption = Callable[[Sequence[Pixels], Sequence[str]], list[str]]
"""(images, sources) -> captions."""


class MissingCaptions(FileNotFoundError):
    """There is no caption file; the message names where it was looked for."""


class BadCaptions(ValueError):
    """A caption file with a damaged line; the message names file and line."""


class Counts(NamedTuple):
    """How many clean images have a caption, and how many images or samples are damaged."""

    captioned: int
    damaged: int


@dataclass(frozen=True)
class CleanImage:
    """A distinct clean image; many samples may hold it."""

    digest: str
    """SHA-256 of its pixels."""
    source: str
    """Its name in the first sample that holds it."""
    copies: list[SampleAddress] = field(default_factory=list)
    """The samples that hold it."""

    def pixels(self) -> Pixels | str:
        """The image, from the first sample in which it is whole, or what is wrong in the last."""
        fault = ""
        for copy in self.copies:
            try:
                return copy.image("gt")
            except (BadImage, BadShard) as error:
                fault = str(error)
        return fault


def read_captions(path: Path) -> dict[str, str]:
    """The captions by the SHA-256 of the clean image's pixels.

    Raises:
        MissingCaptions: there is no such file.
        BadCaptions: a line of it is damaged.
    """
    if not path.is_file():
        raise MissingCaptions(f"there is no caption file {path}")
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

    A damaged image or sample is logged and recorded in the file with the reason; it stops nothing.

    Args:
        samples: the same on every rank.
        folder: for these samples and this captioner alone.
        caption: the captioner; an empty caption counts as none.
        by: its name, for the record.
        batch_size: images to caption at once.
        rank: number of this process.
        world: number of processes.
        check: called with all sources before the work starts; raises if they cannot be captioned.

    Returns:
        What this rank has seen finished by any rank; on rank 0, everything.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the captioner does not return one caption for each image.
    """
    target = folder / CAPTIONS
    if target.is_file():
        entries = list(_read(target))
    else:
        images, damaged = _clean_images(samples, quiet=rank > 0)
        for reason in dict.fromkeys(damaged):
            log.warning("not captioned: %s", reason)
        if check is not None:
            check([image.source for image in images])
        plan = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        keys = [[image.digest for image in batch] for batch in plan]
        work = partial(_entries, caption=caption, by=by)
        entries = run_batches(
            target, plan, keys, _decode, work, rank=rank, world=world, title="captions"
        )
        entries += [{"damaged": reason} for reason in damaged]
        if rank == 0:
            _write(target, entries)
    if rank == 0:
        remove_parts(target)
        remove_partial(folder)
    return Counts(sum("caption" in e for e in entries), sum("damaged" in e for e in entries))


Decoded = list[tuple[CleanImage, Pixels | str]]
"""A batch with the pixels of each image, or with what is wrong with it."""


def _decode(batch: Sequence[CleanImage]) -> Decoded:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(zip(batch, pool.map(CleanImage.pixels, batch), strict=True))


def _entries(batch: Decoded, caption: Caption, by: str) -> list[Line]:
    """The lines of a batch, captioned."""
    whole = [(image, pixels) for image, pixels in batch if not isinstance(pixels, str)]
    images = [pixels for _, pixels in whole]
    texts = caption(images, [image.source for image, _ in whole]) if whole else []
    if len(texts) != len(images):
        raise ValueError(f"{by} gave {len(texts)} captions for {len(images)} images")
    captions = {image.digest: text for (image, _), text in zip(whole, texts, strict=True)}
    return [_entry(image, pixels, captions.get(image.digest), by) for image, pixels in batch]


def _entry(image: CleanImage, pixels: Pixels | str, text: str | None, by: str) -> Line:
    line = {"gt_sha256": image.digest, "source": image.source}
    if text:
        return line | {"caption": text, "by": by}
    fault = pixels if isinstance(pixels, str) else f"{by} gave no words"
    log.warning("not captioned: %s: %s", image.source, fault)
    return line | {"damaged": fault}


def _clean_images(
    samples: Sequence[SampleAddress], quiet: bool
) -> tuple[list[CleanImage], list[str]]:
    """The distinct clean images in the order of the samples, and the faults of unreadable ones."""
    images: dict[str, CleanImage] = {}
    damaged: list[str] = []
    chunks = [samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK)]
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(samples), desc="samples", unit="sample", disable=quiet) as progress,
    ):
        for chunk, found in zip(chunks, pool.map(_identify, chunks), strict=True):
            for sample, image in zip(chunk, found, strict=True):
                if isinstance(image, CleanImage):
                    images.setdefault(image.digest, image).copies.append(sample)
                else:
                    damaged.append(image)
            progress.update(len(chunk))
    return list(images.values()), damaged


def _identify(samples: Sequence[SampleAddress]) -> list[CleanImage | str]:
    """Which clean image each sample holds, or why that is unknown."""
    found: list[CleanImage | str] = []
    for sample in samples:
        try:
            metadata = sample.metadata()
            found.append(CleanImage(metadata["gt_sha256"], metadata["source"]))
        except (BadImage, BadShard) as error:
            found.append(str(error))
    return found


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
                raise BadCaptions(f"{path}:{number} is damaged ({error})") from error
            yield entry

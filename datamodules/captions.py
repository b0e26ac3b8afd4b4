"""The caption file of a set of shards: JSON lines, one for each clean image, by content hash.

It lies beside the shards, not in them, so that captions can change without rewriting any.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from datamodules.images import BadImage, Pixels
from datamodules.reader import SampleAddress

log = logging.getLogger(__name__)

CAPTIONS = "captions.jsonl"
PARTIAL = "captions.partial.jsonl"

Caption = Callable[[Sequence[Pixels], Sequence[str]], list[str]]
"""(images, sources) -> captions."""


def read_captions(path: Path) -> dict[str, str]:
    """The captions by the SHA-256 of the clean image's pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no captions {path}; run `make captions` first")
    return dict(_entries(path))


def write_captions(
    samples: Sequence[SampleAddress], folder: Path, caption: Caption, by: str, batch_size: int
) -> int:
    """Caption every distinct clean image once; what an interrupted run has captioned is kept.

    Returns:
        How many distinct clean images there are.
    """
    partial = folder / PARTIAL
    done = _recover(partial)
    todo: dict[str, tuple[SampleAddress, str]] = {}
    for sample in samples:
        try:
            origin = sample.origin()
        except BadImage as error:
            log.warning("not captioned, damaged: %s", error)
            continue
        digest = origin["gt_sha256"]
        if digest not in done:
            todo.setdefault(digest, (sample, origin["source"]))
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(todo) + len(done), initial=len(done), desc="captions") as progress,
    ):
        items = list(todo.items())
        for start in range(0, len(items), batch_size):
            chunk = items[start : start + batch_size]
            readable = [(digest, source, _image(sample)) for digest, (sample, source) in chunk]
            whole = [(d, source, image) for d, source, image in readable if image is not None]
            texts = caption([i for _, _, i in whole], [s for _, s, _ in whole]) if whole else []
            for (digest, source, _), text in zip(whole, texts, strict=True):
                entry = {"gt_sha256": digest, "source": source, "caption": text, "by": by}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            progress.update(len(chunk))
    partial.replace(folder / CAPTIONS)
    return len(todo) + len(done)


def _image(sample: SampleAddress) -> Pixels | None:
    """The clean image; None, and a warning, where it is damaged, as training will skip it too."""
    try:
        return sample.image("gt")
    except BadImage as error:
        log.warning("not captioned, damaged: %s", error)
        return None


def _recover(partial: Path) -> set[str]:
    """What is already captioned; a last line that a kill cut short is removed."""
    if not partial.is_file():
        return set()
    with partial.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    return {digest for digest, _ in _entries(partial)}


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            yield entry["gt_sha256"], entry["caption"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number} is damaged ({error}); make the captions again"
            ) from error

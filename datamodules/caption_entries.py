"""The lines of a caption file: clean images decoded side by side, captioned, faults recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from datamodules.clean_images import CleanImage
from datamodules.images import BadImage, Pixels
from datamodules.ledger import Line
from datamodules.shards.index import BadShard

log = logging.getLogger(__name__)

READERS = 4
"""Threads that decode images."""

Caption = Callable[[Sequence[Pixels], Sequence[str]], list[str]]
"""(images, sources) -> captions."""
Decoded = list[tuple[CleanImage, Pixels | str]]
"""A batch with the pixels of each image, or with what is wrong with it."""


class CaptionEntries:
    """Reads batches of clean images and captions them."""

    def __init__(self, caption: Caption, by: str) -> None:
        """Caption by a function; `by` names it in each line."""
        self._caption, self._by = caption, by
        self._readers = ThreadPoolExecutor(READERS)

    def close(self) -> None:
        """Stop reading."""
        self._readers.shutdown(cancel_futures=True)

    def read(self, batch: Sequence[CleanImage]) -> Decoded:
        """Decode a batch, an image for each reader at a time."""
        return list(zip(batch, self._readers.map(_decode, batch), strict=True))

    def caption(self, batch: Decoded) -> list[Line]:
        """The batch's lines.

        Raises:
            ValueError: there are not as many captions as images.
        """
        whole = [(image, pixels) for image, pixels in batch if not isinstance(pixels, str)]
        images = [pixels for _, pixels in whole]
        texts = self._caption(images, [image.source for image, _ in whole]) if whole else []
        if len(texts) != len(images):
            raise ValueError(f"{self._by} gave {len(texts)} captions for {len(images)} images")
        captions = {image.digest: text for (image, _), text in zip(whole, texts, strict=True)}
        return [self._line(image, pixels, captions) for image, pixels in batch]

    def _line(self, image: CleanImage, pixels: Pixels | str, captions: dict[str, str]) -> Line:
        line = {"gt_sha256": image.digest, "source": image.source}
        text = captions.get(image.digest)
        if text:
            return line | {"caption": text, "by": self._by}
        fault = pixels if isinstance(pixels, str) else f"{self._by} gave no words"
        log.warning("not captioned: %s: %s", image.source, fault)
        return line | {"damaged": fault}


def _decode(image: CleanImage) -> Pixels | str:
    try:
        return image.pixels()
    except (BadImage, BadShard) as error:
        return str(error)

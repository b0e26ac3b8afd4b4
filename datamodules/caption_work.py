"""One rank's work on the captions: batches of clean images, decoded ahead."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tqdm import tqdm

from datamodules.clean_images import CleanImage
from datamodules.images import BadImage, Pixels
from datamodules.ledger import Ledger, Line
from datamodules.shards import BadShard

log = logging.getLogger(__name__)

READERS = 4
"""Threads that decode images."""
POLL = 0.5
"""Seconds between two looks at what the other ranks have done."""
PATIENCE = 5.0
"""Seconds without a batch of another rank after which rank 0 takes over, at the earliest."""

Caption = Callable[[Sequence[Pixels], Sequence[str]], list[str]]
"""(images, sources) -> captions."""
Reading = list[Future[Pixels]]
"""A batch that is being decoded."""


class Work:
    """The batches there are, and which of them are finished."""

    def __init__(
        self,
        plan: Sequence[Sequence[CleanImage]],
        parts: Ledger,
        caption: Caption,
        by: str,
        quiet: bool,
    ) -> None:
        """Begin; `plan` has the images of each batch, `quiet` shows no progress."""
        self._plan, self._parts, self._caption, self._by = plan, parts, caption, by
        self._slowest = 0.0
        self._pool = ThreadPoolExecutor(READERS)
        self._progress = tqdm(
            total=sum(map(len, plan)),
            initial=len(parts.lines()),
            desc="captions",
            unit="image",
            disable=quiet,
        )

    def close(self) -> None:
        """Stop reading and showing progress."""
        self._pool.shutdown(cancel_futures=True)
        self._progress.close()

    def finish(self, numbers: Iterable[int], stop: Callable[[], bool]) -> None:
        """Caption those of these batches that nobody has, until `stop` says there is no need."""
        for number, reading in self._read_ahead(self._left(numbers, stop)):
            self._do(number, reading)

    def finish_others(self) -> None:
        """See to it that every batch is finished.

        Wait for the other ranks. When none of them finishes a batch for three times as long as the
        slowest batch took here, take over what is left, from the end. Should they live after all,
        what is done twice counts once.
        """
        patience = max(PATIENCE, 3 * self._slowest)
        heard, alone = time.monotonic(), False
        while left := [n for n in range(len(self._plan)) if n not in self._parts.done]:
            if self._look() > 0:
                heard, alone = time.monotonic(), False
            elif alone:
                self._do(left[-1], self._decode(left[-1]))
            elif time.monotonic() - heard > patience:
                alone = True
                log.warning(
                    "no other rank has captioned anything for %.0f s: rank 0 takes over the %d "
                    "batches that are left",
                    patience,
                    len(left),
                )
            else:
                time.sleep(POLL)

    def _look(self) -> int:
        """How many batches other ranks have finished since the last look."""
        new = self._parts.refresh()
        self._show()
        return new

    def _show(self) -> None:
        self._progress.update(len(self._parts.lines()) - self._progress.n)

    def _left(self, numbers: Iterable[int], stop: Callable[[], bool]) -> Iterator[int]:
        for number in numbers:
            self._look()
            if stop():
                return
            if number not in self._parts.done:
                yield number

    def _read_ahead(self, numbers: Iterable[int]) -> Iterator[tuple[int, Reading]]:
        """Each batch while the next is being decoded."""
        ahead: deque[tuple[int, Reading]] = deque()
        for number in numbers:
            ahead.append((number, self._decode(number)))
            if len(ahead) > 1:
                yield ahead.popleft()
        yield from ahead

    def _decode(self, number: int) -> Reading:
        return [self._pool.submit(image.pixels) for image in self._plan[number]]

    def _do(self, number: int, reading: Reading) -> None:
        started = time.monotonic()
        self._parts.add(number, self._entries(self._plan[number], reading))
        self._slowest = max(self._slowest, time.monotonic() - started)
        self._show()

    def _entries(self, batch: Sequence[CleanImage], reading: Reading) -> list[Line]:
        """The batch's lines of the caption file."""
        pixels: dict[str, Pixels] = {}
        faults: dict[str, str] = {}
        for image, result in zip(batch, reading, strict=True):
            try:
                pixels[image.digest] = result.result()
            except (BadImage, BadShard) as error:
                faults[image.digest] = str(error)
        texts = self._texts(pixels, [image.source for image in batch if image.digest in pixels])
        faults |= {d: f"{self._by} gave no words" for d, text in texts.items() if not text}
        return [self._entry(image, texts, faults) for image in batch]

    def _texts(self, pixels: Mapping[str, Pixels], sources: Sequence[str]) -> dict[str, str]:
        texts = self._caption(list(pixels.values()), sources) if pixels else []
        if len(texts) != len(pixels):
            raise ValueError(f"{self._by} gave {len(texts)} captions for {len(pixels)} images")
        return dict(zip(pixels, texts, strict=True))

    def _entry(
        self, image: CleanImage, texts: Mapping[str, str], faults: Mapping[str, str]
    ) -> Line:
        entry = {"gt_sha256": image.digest, "source": image.source}
        if fault := faults.get(image.digest):
            log.warning("not captioned: %s: %s", image.source, fault)
            return entry | {"damaged": fault}
        return entry | {"caption": texts[image.digest], "by": self._by}

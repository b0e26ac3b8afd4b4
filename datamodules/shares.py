"""Work shared out to any number of processes, "ranks", by files in one folder and nothing else.

The work is a plan of batches; batch b is of rank b % world. What any rank has finished is kept
through kills, whatever the number of ranks afterwards; what was done twice counts once. The first
rank waits for the others and takes over what they leave undone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from tqdm import tqdm

from datamodules.ledger import Ledger, Line

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two looks at what the other ranks have done."""
PATIENCE_S = 5.0
"""Without a batch of another rank, after which the first takes over, at the earliest."""

Item = TypeVar("Item")
Read = TypeVar("Read")


class Share(Generic[Item, Read]):
    """One rank's part of the work; a batch is read while the one before it is worked on."""

    def __init__(
        self,
        plan: Sequence[Sequence[Item]],
        ledger: Ledger,
        read: Callable[[Sequence[Item]], Read],
        work: Callable[[Read], list[Line]],
        title: str,
        quiet: bool,
    ) -> None:
        """Begin.

        Args:
            plan: the items of each batch; an item is an image.
            ledger: of the same plan.
            read: gets a batch ready, in a thread.
            work: what is to be done; gives the lines to record.
            title: of the progress bar.
            quiet: show no progress.
        """
        self._plan, self._ledger, self._read, self._work = plan, ledger, read, work
        self._slowest = 0.0
        self._pool = ThreadPoolExecutor(1)
        self._progress = tqdm(
            total=sum(map(len, plan)),
            initial=self._items_done(),
            desc=title,
            unit="image",
            disable=quiet,
        )

    def close(self) -> None:
        """Stop reading and showing progress."""
        self._pool.shutdown(cancel_futures=True)
        self._progress.close()

    def finish(self, numbers: Iterable[int], stop: Callable[[], bool]) -> None:
        """Do those of these batches that nobody has done, until `stop` says there is no need."""
        ahead: tuple[int, Future[Read]] | None = None
        for number in self._undone(numbers, stop):
            following = number, self._pool.submit(self._read, self._plan[number])
            if ahead:
                self._do(*ahead)
            ahead = following
        if ahead:
            self._do(*ahead)

    def finish_others(self) -> None:
        """See to it that every batch is done.

        Wait for the other ranks. When none of them finishes a batch for three times as long as the
        slowest took here, take over what is left, from the end. Should they live after all, what
        is done twice counts once.
        """
        patience = max(PATIENCE_S, 3 * self._slowest)
        heard, alone = time.monotonic(), False
        while left := self._ledger.left():
            if self._look() > 0:
                heard, alone = time.monotonic(), False
            elif alone:
                self._do(left[-1], self._pool.submit(self._read, self._plan[left[-1]]))
            elif time.monotonic() - heard > patience:
                alone = True
                log.warning(
                    "no other rank has finished a batch for %.0f s: the first takes over the %d "
                    "that are left",
                    patience,
                    len(left),
                )
            else:
                time.sleep(POLL_S)

    def _undone(self, numbers: Iterable[int], stop: Callable[[], bool]) -> Iterator[int]:
        for number in numbers:
            self._look()
            if stop():
                return
            if number not in self._ledger.done:
                yield number

    def _look(self) -> int:
        """How many batches other ranks have finished since the last look."""
        new = self._ledger.refresh()
        self._show()
        return new

    def _show(self) -> None:
        self._progress.update(self._items_done() - self._progress.n)

    def _items_done(self) -> int:
        return sum(len(self._plan[number]) for number in self._ledger.done)

    def _do(self, number: int, reading: Future[Read]) -> None:
        started = time.monotonic()
        self._ledger.add(number, self._work(reading.result()))
        self._slowest = max(self._slowest, time.monotonic() - started)
        self._show()

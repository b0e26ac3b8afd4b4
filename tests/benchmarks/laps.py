"""A stopwatch for the steps of a loop."""

from __future__ import annotations

from collections import defaultdict
from time import perf_counter


class Laps:
    """Adds up the seconds of each step, over all passes of a loop."""

    def __init__(self) -> None:
        """Start."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = perf_counter()

    def __call__(self, step: str) -> None:
        """A step ends here; it began where the one before it ended."""
        now = perf_counter()
        self.seconds[step] += now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return sum(self.seconds.values())

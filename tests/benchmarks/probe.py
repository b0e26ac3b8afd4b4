"""`python -m tests.benchmarks.probe SHARDS DRAWS`: the memory that training draws take.

Run in a process of its own, which has nothing else in its memory; Linux only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.benchmarks.sets import TINY
from tests.benchmarks.speed import open_draws


def memory() -> dict[str, float]:
    """Megabytes of this process.

    `rss` is all that it has mapped and touched, `pss` counts what it shares by its share, and
    `private` is what its end would free or drop.
    """
    text = Path("/proc/self/status").read_text() + Path("/proc/self/smaps_rollup").read_text()
    pairs = (line.partition(":") for line in text.splitlines())
    kb = {name: int(rest.split()[0]) for name, _, rest in pairs if rest.endswith("kB")}
    private = kb["Private_Clean"] + kb["Private_Dirty"]
    found = {"rss": kb["VmRSS"], "pss": kb["Pss"], "private": private}
    return {name: value * 1024 / 1e6 for name, value in found.items()}


def main() -> None:
    """Open the shards and draw, and write what that took to standard output."""
    folder, draws = Path(sys.argv[1]), int(sys.argv[2])
    before = memory()
    dataset = open_draws(folder, patch=TINY)
    for n in range(draws):
        dataset[n]
    json.dump({"before": before, "after": memory()}, sys.stdout)


if __name__ == "__main__":
    main()

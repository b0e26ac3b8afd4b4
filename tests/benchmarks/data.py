"""`python -m tests.benchmarks.data [--out FOLDER]`: what loading costs, beside the plain way.

It makes its own files in a temporary folder (about 1 GB, see TMPDIR) and removes them. It takes
about three minutes on two cores. Linux only.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import torch

from datamodules.shards.writer import Format
from pipeline.compose import load_config
from pipeline.stages.shards import ShardsConfig
from tests.benchmarks.machine import CUDA, machine
from tests.benchmarks.scale import memory_rows, opening_rows, resume_rows, streaming_rows
from tests.benchmarks.sets import make_pairs, make_tiny, megabytes, shard_pairs
from tests.benchmarks.speed import BATCH, PATCH, VIEW, Speeds, speed_rows
from tests.benchmarks.table import Row, markdown, write_results

log = logging.getLogger(__name__)

SOURCES = ((1280, 720), (512, 512))
"""Width and height of the pictures that are read."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds: in which each way is timed once.
        pairs: of pictures, of each size.
        batches: of each way in a round; 5 of 16 show each of 20 pairs equally often.
        few: samples of the small set.
        many: samples of the large one, a hundred to a shard.
        writers: processes that write it.
        cold: how often it is indexed.
        draws: before memory is read.
        probes: processes whose memory is read, for each set.
        skipped: samples that a stream passes over.
    """

    rounds: int = 5
    pairs: int = 20
    batches: int = 5
    few: int = 1000
    many: int = 100_000
    writers: int = 2
    cold: int = 2
    draws: int = 2000
    probes: int = 3
    skipped: int = 2000


QUICK = Sizes(1, 2, 1, few=100, many=200, writers=0, cold=1, draws=20, probes=1, skipped=20)


def main() -> None:
    """Measure everything; log a table, and write it with every round's figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.data", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench-data"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="try it out; figures mean nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    notes = _notes()
    before = machine({"OpenCV": cv2.__version__})
    with TemporaryDirectory(prefix="bench-data-") as scratch:
        rows = measure(Path(scratch), QUICK if arguments.quick else Sizes())
    write_results(arguments.out, "data", rows, before, notes)
    log.info("\n%s", markdown(rows))
    for note in notes:
        log.info("- %s", note)
    log.info("written to %s", arguments.out)


def measure(scratch: Path, sizes: Sizes) -> list[Row]:
    """All rows; `scratch` takes the files."""
    rows = [row for source in SOURCES for row in _speed(scratch, *source, sizes)]
    npy = scratch / f"{SOURCES[0][0]}x{SOURCES[0][1]}" / "npy"
    few, many = scratch / "few", scratch / "many"
    log.info("making %d and %d tiny samples", sizes.few, sizes.many)
    make_tiny(few, sizes.few, 0)
    shards = make_tiny(many, sizes.many, sizes.writers)
    log.info("opening %d shards", len(shards))
    rows += opening_rows(f"{len(shards)} shards", many, scratch, sizes.cold, warm=5)
    log.info("memory after %d draws", sizes.draws)
    sets = {f"{sizes.few:,} samples": few, f"{sizes.many:,} samples": many}
    rows += memory_rows("memory", sets, sizes.draws, sizes.probes)
    log.info("resuming")
    rows += resume_rows("resume", many, sizes.rounds)
    return rows + streaming_rows("resume", npy, sizes.skipped, sizes.rounds)


def _speed(scratch: Path, width: int, height: int, sizes: Sizes) -> list[Row]:
    part = f"{width}x{height}"
    folder = scratch / part
    log.info("%s: making %d pairs and their shards", part, sizes.pairs)
    pairs = make_pairs(folder / "files", width, height, sizes.pairs)
    shard_pairs(pairs, folder, Format(**load_config()[ShardsConfig].format.model_dump()))
    Speeds(pairs, folder, batches=1).round(0)  # what is slow the first time is not to be timed
    speeds = Speeds(pairs, folder, sizes.batches)
    for number in range(sizes.rounds):
        log.info("%s: round %d of %d", part, number + 1, sizes.rounds)
        speeds.round(number)
    stored = {"PNG files": "files", "npy shards": "npy", "png shards": "png"}
    return [
        *speed_rows(part, speeds),
        *(
            Row(part, f"{name}, a pair", "MB", [megabytes(folder / where, "*.[pt]*") / len(pairs)])
            for name, where in stored.items()
        ),
    ]


def _notes() -> list[str]:
    pinned = "pinned memory" if CUDA else "memory that is not pinned, for there is no CUDA device"
    device = "the CUDA device" if CUDA else "the same CPU core"
    return [
        "torch and OpenCV run on one thread, so speeds are per core. Files are in the page cache: "
        "no disk is measured.",
        f"A sample is a pair of {PATCH}x{PATCH} crops as floats and CLIP's view of {VIEW}x{VIEW}; "
        f"batches of {BATCH} in {pinned}; the device's part runs on {device}.",
        "plain: read two PNG files whole, cut, flip, turn, to floats, resize by Pillow, in one "
        "process. Ways are timed in turn, round after round, over the same pictures.",
        "Private memory includes the clean pages of mapped files, which the system takes back when "
        "it needs them.",
    ]


if __name__ == "__main__":
    main()

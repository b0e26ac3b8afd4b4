"""`python -m tests.benchmarks.train [--out FOLDER]`: what training costs, beside the plain way.

Weights and images are random; nothing is downloaded. It takes about five minutes and 6 GB of memory
on two cores. Linux only.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks.machine import load, machine
from tests.benchmarks.sides import call_rows, step_rows
from tests.benchmarks.table import Row, Target, markdown, write_results
from tests.benchmarks.work import Work

log = logging.getLogger(__name__)

PUBLISHED = ("experiment=universal", "shards.source.root=none")
DEMO = ("experiment=demo",)
NO_SLOWER = Target(1, at_least=True)


@dataclass(frozen=True)
class Case:
    """Training steps to be timed."""

    part: str
    work: Work
    faster: Target


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        cases: training steps.
        rounds: in which each way takes one step.
        calls: U-Net calls, by device, with the sides of the images.
    """

    cases: tuple[Case, ...]
    rounds: int
    calls: tuple[tuple[str, Work, tuple[int, int, int]], ...]


FULL = Plan(
    (
        Case("stage (a), CPU, ViT-B-32, batch 8", Work("controller", PUBLISHED, 8, 256), NO_SLOWER),
        Case(
            "stage (b), CPU, published U-Net, 128², batch 1",
            Work("restorer", PUBLISHED, 1, 128),
            NO_SLOWER,
        ),
        Case(
            "stage (b), CPU, demo's U-Net, 64², batch 8", Work("restorer", DEMO, 8, 64), NO_SLOWER
        ),
        Case(
            "stage (a), CUDA, ViT-B-32, batch 256",
            Work("controller", PUBLISHED, 256, 256, "cuda"),
            Target(2.5, at_least=True),
        ),
        Case(
            "stage (b), CUDA, published U-Net, 256², batch 16",
            Work("restorer", PUBLISHED, 16, 256, "cuda"),
            Target(3, at_least=True),
        ),
    ),
    rounds=5,
    calls=(
        ("U-Net, CPU", Work("call", PUBLISHED, 1, 0), (128, 256, 512)),
        ("U-Net, CPU", Work("call with gradient", PUBLISHED, 1, 0), (64, 128, 256)),
        ("U-Net, CUDA", Work("call", PUBLISHED, 1, 0, "cuda"), (256, 512, 1024)),
        ("U-Net, CUDA", Work("call with gradient", PUBLISHED, 1, 0, "cuda"), (256, 512, 1024)),
    ),
)
QUICK = Plan(
    (
        Case("stage (a)", Work("controller", DEMO, 2, 48), NO_SLOWER),
        Case("stage (b)", Work("restorer", DEMO, 2, 32), NO_SLOWER),
        Case("stage (b), CUDA", Work("restorer", DEMO, 2, 32, "cuda"), NO_SLOWER),
    ),
    rounds=1,
    calls=(("U-Net", Work("call with gradient", DEMO, 1, 0), (32, 64, 128)),),
)


def main() -> None:
    """Measure everything; log a table, and write it with every round's figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench-train"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="try it out; figures mean nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    facts = machine({}) | {"threads": torch.get_num_threads()}
    rows = measure(QUICK if arguments.quick else FULL)
    facts |= {"load when it ended": load()}
    write_results(arguments.out, "train", rows, facts, NOTES)
    log.info("\n%s", markdown(rows))
    for note in NOTES:
        log.info("- %s", note)
    log.info("written to %s", arguments.out)


def measure(plan: Plan) -> list[Row]:
    """All rows."""
    steps = [step_rows(c.part, c.work, plan.rounds, c.faster) for c in plan.cases]
    calls = [call_rows(*call) for call in plan.calls]
    return [row for rows in steps + calls for row in rows]


NOTES = (
    "plain: the same networks with the same weights, in float32, eager and contiguous. The score "
    "matrix of each attention is formed, the content is attended to as one key, linear attention "
    "forms V and each head's output at every pixel, norms over channels follow their formula, the "
    "batch's degradation words are encoded at each step, and AdamW is not fused.",
    "ours: the step of the Lightning module, without the loop around it; on CUDA compiled and in "
    "bfloat16. Both make their batch's view for CLIP, and in stage (b) its embeddings.",
    "Pace: a step of each in turn, on the same batch, after one that is not timed. A step is "
    "forward, backward and optimizer; in the ratio, more than 1 is faster than plain.",
    "Peak memory: in a process of its own, on a CPU all beyond what its imports take (VmHWM less "
    "VmRSS before), on CUDA what torch allocates at most; of training the second step counts. "
    "Weights are in it, which every side of an image shares.",
    "Differences: on the same weights and images before the first step, weights that begin as "
    "zero made random, since they would hide what lies behind them.",
)


if __name__ == "__main__":
    main()

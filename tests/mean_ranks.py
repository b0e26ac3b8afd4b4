"""Means by group on one of two gloo ranks: `python -m tests.mean_ranks FOLDER RANK`."""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed

from datamodules.mixture import DistributedEvalSampler
from pipeline.training.group_mean import GroupMean

SIZE, GROUPS = 7, 3


def members() -> tuple[Tensor, Tensor]:
    """Two figures of each sample, and its group; the third group has one member."""
    values = torch.rand(SIZE, 2, generator=torch.Generator().manual_seed(0)) * 40
    return values, torch.tensor([0, 1, 0, 1, 1, 2, 0])


def means(rank: int, world: int) -> Tensor:
    """One sample at a time; a number that stands for nothing is filled up with the first."""
    metric = GroupMean(GROUPS, figures=2)
    values, groups = members()
    for number in DistributedEvalSampler(SIZE, rank, world):
        valid = torch.tensor([number < SIZE])
        index = torch.tensor([number if number < SIZE else 0])
        metric.update(values[index][valid], groups[index][valid])
    return metric.compute()


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    (folder / f"means-{rank}.json").write_text(json.dumps(means(rank, 2).tolist()))
    distributed.destroy_process_group()

"""A batch to train on."""

from __future__ import annotations

import torch

from datamodules.batch import Batch
from datamodules.degradations import WORDS
from tests.benchmarks.work import SEED, Work


def make_batch(work: Work) -> Batch:
    """Random images with captions of their own, the degradations in turn."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (2, work.batch, 3, work.side, work.side)
    lq, gt = torch.randint(0, 256, shape, generator=generator).byte().to(work.device)
    numbers = range(work.batch)
    names = [str(n) for n in numbers]
    return Batch(
        lq,
        gt,
        [(work.side, work.side)] * work.batch,
        [f"a photograph of {n} boats in front of a house on a hill" for n in numbers],
        [WORDS[n % len(WORDS)] for n in numbers],
        names,
        names,
        list(numbers),
        torch.ones(work.batch, dtype=torch.bool),
        [],
    )

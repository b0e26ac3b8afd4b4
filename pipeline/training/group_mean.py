"""Means by group, such as scores by task or losses by time, exact over any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torchmetrics import Metric


class GroupMean(Metric):
    """Means of K figures over the members of each of G groups, and over all members.

    mean_g = sum_(i in g) values_i / |g|; ranks add up their sums and counts before dividing.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, groups: int, figures: int = 1) -> None:
        """Start with no members.

        Args:
            groups: G.
            figures: K.
        """
        super().__init__()
        self.add_state("sums", torch.zeros(groups, figures), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(groups), dist_reduce_fx="sum")

    def update(self, values: Tensor, groups: Tensor) -> None:
        """Add members: values `[N, K]`, and the group of each, int64 `[N]` in 0..G-1."""
        # Not in place: what a reset during validation has made cannot be changed after it.
        self.sums = self.sums.index_add(0, groups, values.detach().to(self.sums))
        self.counts = self.counts.index_add(0, groups, torch.ones_like(groups, dtype=torch.float))

    def compute(self) -> Tensor:
        """Means `[G + 1, K]`, of all members in the last row; nan for a group without one."""
        sums = torch.cat([self.sums, self.sums.sum(dim=0, keepdim=True)])
        counts = torch.cat([self.counts, self.counts.sum(dim=0, keepdim=True)])
        return sums / counts[:, None]


def by_group(name: str, groups: Sequence[str], means: Tensor) -> dict[str, Tensor]:
    """`name/GROUP` -> mean, for means `[G]`; those that are nan, of empty groups, are left out."""
    named = {f"{name}/{group}": mean for group, mean in zip(groups, means, strict=True)}
    return {key: mean for key, mean in named.items() if not mean.isnan()}


def time_buckets(T: int, count: int) -> list[str]:
    """The names `FIRST-LAST` of equal parts of the times 1..T, in the order of `bucket_of`."""
    firsts = [-(-part * T // count) + 1 for part in range(count + 1)]
    return [f"{first}-{after - 1}" for first, after in pairwise(firsts)]


def bucket_of(t: Tensor, T: int, count: int) -> Tensor:
    """The part of 1..T, cut into `count` equal ones, that each time lies in: 0..count-1."""
    return (t - 1) * count // T

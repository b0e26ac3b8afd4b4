"""The mixture: which sample the n-th training draw is, for any n, without a state.

Whoever asks, in whatever order, on whatever rank or worker, draw n is the same sample under the
same augmentation; so a run resumes from its draw number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

_ORDER, _VIEW = 0, 1  # keep the random streams of different uses apart


class Mixture:
    """Draws tasks in equal shares, and the samples of a task in fresh random order each epoch."""

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        """`sizes` maps each word to its number of samples, all positive."""
        self.words = tuple(sizes)
        self.sizes = tuple(sizes.values())
        self.seed = seed

    def __call__(self, n: int) -> tuple[str, int]:
        """The word and the sample's position in its task for draw n.

        Each run of len(words) draws holds every word once, in random order.
        """
        block, slot = divmod(n, len(self.words))
        task = int(_permutation(self.seed, -1, block, len(self.words))[slot])
        epoch, position = divmod(block, self.sizes[task])
        return self.words[task], int(
            _permutation(self.seed, task, epoch, self.sizes[task])[position]
        )

    def rng(self, n: int) -> np.random.Generator:
        """The generator of draw n's augmentation."""
        return np.random.default_rng([self.seed, _VIEW, n])


@lru_cache(maxsize=64)
def _permutation(seed: int, task: int, epoch: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, _ORDER, task + 1, epoch]).permutation(size)


class DrawSampler(Sampler[int]):
    """The draw numbers of one rank: start + rank, start + rank + world, ... without end."""

    def __init__(self, start: int, rank: int, world: int) -> None:
        """`start` is the number of draws that all ranks together have already used."""
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[int]:
        """Count up."""
        n = self.start + self.rank
        while True:
            yield n
            n += self.world


class ShareSampler(Sampler[int]):
    """One rank's share of `size` samples, every sample once over all ranks.

    Ranks get equally many numbers, so that none waits for another in a collective call; a number
    of `size` or more stands for nothing and is marked not valid by the dataset.
    """

    def __init__(self, size: int, rank: int, world: int) -> None:
        """Of `world` ranks, this is the share of `rank`."""
        self.numbers = range(rank, -(-size // world) * world, world)

    def __iter__(self) -> Iterator[int]:
        """In order."""
        return iter(self.numbers)

    def __len__(self) -> int:
        """Equal on all ranks."""
        return len(self.numbers)

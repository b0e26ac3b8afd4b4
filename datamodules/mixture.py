"""The mixture: which sample the n-th training draw is, for any n, without state.

Draw n is the same sample with the same augmentation in any order, on any rank and worker; so a run
resumes from its number of draws alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from datamodules.errors import TaskWeightsError

_ORDER, _VIEW = 0, 1  # keep the random streams of different uses apart
_TASKS = -1  # of the order of tasks, where samples have the number of their task


class Mixture:
    """Draws tasks in fixed proportions, and the samples of a task in new order each epoch."""

    def __init__(
        self,
        counts: Mapping[str, Sequence[int]],
        seed: int,
        task_weights: Mapping[str, int] | None = None,
        window: int | None = None,
    ) -> None:
        """Mix tasks.

        Args:
            counts: of each word, the number of samples in each of its shards; not all 0.
            seed: of every order.
            task_weights: how often each word is drawn relative to the others, in whole numbers;
                1 for a word that is not named; 0 leaves it out.
            window: how many shards of a task are drawn from at once, so that far shards are
                needed one after the other; None for all.

        Raises:
            TaskWeightsError: a weight is negative or of an unknown word, or all are 0.
        """
        task_weights = task_weights or {}
        _check_weights(task_weights, counts)
        self.words = tuple(word for word in counts if task_weights.get(word, 1))
        self._counts = tuple(tuple(counts[word]) for word in self.words)
        self._weights = tuple(task_weights.get(word, 1) for word in self.words)
        self.seed, self._window = seed, window

    def __call__(self, n: int) -> tuple[str, int]:
        """The word and the sample's position in its task for draw n.

        Each block of sum(task_weights) draws holds every word as often as its weight, in random
        order.
        """
        block, slot = divmod(n, sum(self._weights))
        task, before = _slots(self.seed, block, self._weights)[slot]
        drawn = block * self._weights[task] + before  # times this task was drawn before draw n
        counts = self._counts[task]
        epoch, place = divmod(drawn, sum(counts))
        return self.words[task], int(_order(self.seed, task, epoch, counts, self._window)[place])

    def rng(self, n: int) -> np.random.Generator:
        """The generator of draw n's augmentation."""
        return np.random.default_rng([self.seed, _VIEW, n])


def _check_weights(task_weights: Mapping[str, int], counts: Mapping[str, Sequence[int]]) -> None:
    asked = {word for word, weight in task_weights.items() if weight != 1}
    if unknown := sorted(asked - set(counts)):
        raise TaskWeightsError(
            f"task_weights names {', '.join(unknown)}; there are samples of {', '.join(counts)}"
        )
    if any(weight < 0 for weight in task_weights.values()):
        raise TaskWeightsError(f"task_weights={dict(task_weights)}: give whole numbers, 0 or more")
    if not any(task_weights.get(word, 1) for word in counts):
        raise TaskWeightsError("task_weights leaves no task to draw")


@lru_cache(maxsize=64)
def _slots(seed: int, block: int, weights: tuple[int, ...]) -> list[tuple[int, int]]:
    """The task of each draw of a block, and how often the block drew it before."""
    tasks = np.repeat(np.arange(len(weights)), weights)
    tasks = np.random.default_rng([seed, _ORDER, _TASKS + 1, block]).permutation(tasks)
    seen = [0] * len(weights)
    slots = []
    for task in tasks.tolist():
        slots.append((task, seen[task]))
        seen[task] += 1
    return slots


@lru_cache(maxsize=64)
def _order(
    seed: int, task: int, epoch: int, counts: tuple[int, ...], window: int | None
) -> NDArray[np.uint32]:
    """All positions of a task in random order, `window` random shards after `window` others."""
    rng = np.random.default_rng([seed, _ORDER, task + 1, epoch])
    if window is None or window >= len(counts):
        return rng.permutation(sum(counts)).astype(np.uint32)
    starts = np.cumsum([0, *counts])
    shards = rng.permutation(len(counts))
    groups = [shards[i : i + window] for i in range(0, len(shards), window)]
    ranges = ([np.arange(starts[s], starts[s + 1]) for s in group] for group in groups)
    return np.concatenate([rng.permutation(np.concatenate(r)) for r in ranges]).astype(np.uint32)


class TrainSampler(Sampler[int]):
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


class DistributedEvalSampler(Sampler[int]):
    """One rank's part of `size` samples; every sample occurs once over all ranks.

    All ranks get equally many indices, so that collective calls match; indices of `size` or more
    are padding, which the dataset marks as not valid.
    """

    def __init__(self, size: int, rank: int, world: int) -> None:
        """The samples of rank `rank` of `world` ranks."""
        self.numbers = range(rank, -(-size // world) * world, world)

    def __iter__(self) -> Iterator[int]:
        """In order."""
        return iter(self.numbers)

    def __len__(self) -> int:
        """Equal on all ranks."""
        return len(self.numbers)

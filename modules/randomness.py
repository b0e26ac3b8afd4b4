"""Random numbers that depend on what is drawn, not on where or after what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def draw_generators(device: torch.device, seed: int, draws: Iterable[int]) -> list[torch.Generator]:
    """A generator for each training draw of a batch.

    On any rank of any number, before or after a resume, a draw gets the same numbers.

    Args:
        device: where the numbers will be drawn; each kind of device has numbers of its own.
        seed: of the run.
        draws: numbers of the draws, as the mixture counts them.
    """
    return [torch.Generator(device).manual_seed(_hash(seed, draw)) for draw in draws]


def _hash(*numbers: int) -> int:
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

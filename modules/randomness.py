"""Random numbers that depend on where a run is, not on how it got there."""

from __future__ import annotations

import hashlib

import torch


def step_generator(device: torch.device, *where: int) -> torch.Generator:
    """A generator for one training step of one rank.

    Resumed, a run draws what it would have drawn undisturbed.

    Args:
        device: where its numbers will be drawn.
        where: seed, step and rank, or whatever else tells this use from others.
    """
    digest = hashlib.sha256(repr(where).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)

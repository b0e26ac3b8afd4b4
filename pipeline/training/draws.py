"""Random numbers that depend on what is drawn, not on where or after what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from modules.clip.losses import gather


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


def draw_noise(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Normal noise for each image of a batch `[B, ...]` by its generator, of the images' device."""
    noise = torch.empty_like(like)
    for generator, into in zip(generators, noise, strict=True):
        into.normal_(generator=generator)
    return noise


def random_patches(
    side: int, generators: Sequence[torch.Generator], *images: Tensor
) -> tuple[Tensor, ...]:
    """A square of each image, `[B, C, side, side]`, at the same random place in all of `images`.

    Args:
        side: of the squares, at most that of the images.
        generators: one for each entry of the batch, of the CPU: a GPU would be waited for.
        images: `[B, C, H, W]` each, all of one size.
    """
    height, width = images[0].shape[2:]
    places = []
    for generator in generators:
        u, v = torch.rand(2, generator=generator).tolist()
        places.append((int(u * (height - side + 1)), int(v * (width - side + 1))))
    return tuple(
        torch.stack(
            [
                image[:, top : top + side, left : left + side]
                for image, (top, left) in zip(batch, places, strict=True)
            ]
        )
        for batch in images
    )


def other_in_batch(numbers: Sequence[int], features: Tensor) -> Tensor:
    """For each draw the features of the one before it in the batch of all ranks; it goes round."""
    own = torch.tensor(numbers, device=features.device)
    drawn, order = gather(own).sort()
    return gather(features)[order[torch.searchsorted(drawn, own) - 1]]

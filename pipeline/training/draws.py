"""Random numbers that depend on what is drawn, not on where or after what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from modules.clip.daclip import Embeddings
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


def random_crops(
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


def draw_chances(generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """A uniform number in 0..1 for each image, `[B]`."""
    return torch.stack([torch.rand((), generator=g) for g in generators]).to(device)


def augment_prompts(
    embeddings: Embeddings,
    texts: Tensor,
    swapped: Tensor,
    chances: Tensor,
    text_prob: float,
    swap_prob: float,
) -> Embeddings:
    """Replace the degradation embedding of a part of the images, by chance.

    Args:
        embeddings: of the images.
        texts: `[B, D]`, what replaces it with probability `text_prob`.
        swapped: `[B, D]`, what replaces it with probability `swap_prob`.
        chances: `[B]`, uniform in 0..1.
        text_prob: probability, at most 1 together with `swap_prob`.
        swap_prob: probability.
    """
    prompts = torch.where((chances < text_prob)[:, None], texts, embeddings.degradation)
    swap = (chances >= text_prob) & (chances < text_prob + swap_prob)
    return embeddings._replace(degradation=torch.where(swap[:, None], swapped, prompts))


def other_in_batch(numbers: Sequence[int], features: Tensor) -> Tensor:
    """For each draw the features of the previous one in the batch of all ranks, cyclically."""
    own = torch.tensor(numbers, device=features.device)
    drawn, order = gather(own).sort()
    return gather(features)[order[torch.searchsorted(drawn, own) - 1]]

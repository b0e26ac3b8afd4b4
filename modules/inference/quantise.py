"""From float images to 8-bit ones."""

from __future__ import annotations

import torch
from torch import Tensor


def quantise(images: Tensor) -> Tensor:
    """8-bit images `[B, 3, H, W]` of float ones in [0, 1], on their device.

    Values are clamped to [0, 1], infinite ones too, and rounded, halves to the even level.

    Raises:
        ValueError: a pixel is NaN, which has no level; every such image is named.
    """
    counts = images.isnan().any(dim=1).flatten(1).sum(dim=1).tolist()
    if any(counts):
        found = ", ".join(
            f"{count} in image {number} of {len(counts)}"
            for number, count in enumerate(counts, 1)
            if count
        )
        raise ValueError(
            f"NaN pixels cannot be shown or scored: {found}; what made the images failed, "
            f"so look at its weights and its precision"
        )
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)

"""A convolutional stem for a vision transformer that starts from random weights.

Noise, blur and compression show in the local energy of an image's fine structure, which a linear
patch embedding cannot measure; a few small convolutions can, and learn within far fewer steps
(Xiao et al., Early Convolutions Help Transformers See Better, NeurIPS 2021, arXiv 2106.14881).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

FINE, GAIN = 2 / 3, 16
"""The share of the first kernels that begin blind to brightness, and how much longer those are:
fine structure is faint beside brightness, and learnt late where kernels see both."""


class ConvStem(nn.Sequential):
    """Images `[B, 3, H, W]` to patches `[B, width, H / patch, W / patch]`.

    A 3x3 convolution of stride 2 and a GELU for each of `channels`, then a linear embedding of
    what is left of a patch. No norm stands between: how bright and how strong is what tells haze,
    darkness and noise.
    """

    def __init__(self, channels: Sequence[int], width: int, patch: int) -> None:
        """Make the stem.

        Args:
            channels: of each convolution.
            width: of the transformer.
            patch: side of a patch, in pixels.

        Raises:
            ValueError: the patch cannot be halved so often.
        """
        rest, left_over = divmod(patch, 2 ** len(channels))
        if not rest or left_over:
            raise ValueError(
                f"a stem of {len(channels)} convolutions halves the patch as often, and a patch "
                f"of {patch} pixels cannot be; choose a multiple of {2 ** len(channels)}"
            )
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            if not layers:
                _see_fine_structure(convolution.weight)
            layers += [convolution, nn.GELU()]
        last = channels[-1] if channels else 3
        super().__init__(*layers, nn.Conv2d(last, width, rest, stride=rest, bias=False))


@torch.no_grad()
def _see_fine_structure(kernels: torch.Tensor) -> None:
    """Let the first of the kernels, `[channels, 3, 3, 3]`, sum to zero over each colour."""
    fine = kernels[: round(FINE * len(kernels))]
    fine.sub_(fine.mean(dim=(2, 3), keepdim=True)).mul_(GAIN)

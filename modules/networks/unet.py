"""The restorer's network: a U-Net conditioned on time, degradation and content.

Architecture of IR-SDE (arXiv 2301.11699) with the conditions of DA-CLIP (arXiv 2310.01018) and, as
options, the changes of wild-IR (arXiv 2404.09732). Released weights load into it by way of
`modules.reference.unet`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.networks import BYTES_PER_CHANNEL, NETWORKS
from modules.networks.blocks import (
    DegradationPrompt,
    LinearAttention,
    NoAttention,
    ResidualBlock,
    SpatialTransformer,
    TimeEmbedding,
)

LINEAR_LEVELS = 3
"""Levels with linear attention, being large; further levels and the middle have the full one."""

ATTENTIONS = ("all", "full", "none")
"""Which attention a network has; see `ConditionalUNet`."""


class EncoderLevel(nn.Module):
    """Two residual blocks, attention, and the way to the next level."""

    def __init__(
        self, channels_in: int, embedding_dim: int, attention: nn.Module, resample: nn.Module
    ) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels_in, channels_in, embedding_dim)
        self.block2 = ResidualBlock(channels_in, channels_in, embedding_dim)
        self.attention = attention
        self.resample = resample

    def forward(
        self, x: Tensor, time: Tensor, content: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, channels_in, H, W]` -> input of the next level, and two skips of this one."""
        skip1: Tensor = self.block1(x, time)
        skip2: Tensor = self.attention(self.block2(skip1, time), content)
        return self.resample(skip2), skip1, skip2


class DecoderLevel(nn.Module):
    """The mirror of an encoder level: each residual block takes one of its skips, last first."""

    def __init__(
        self,
        channels_in: int,
        skip_channels: int,
        embedding_dim: int,
        attention: nn.Module,
        resample: nn.Module,
    ) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels_in + skip_channels, channels_in, embedding_dim)
        self.block2 = ResidualBlock(channels_in + skip_channels, channels_in, embedding_dim)
        self.attention = attention
        self.resample = resample

    def forward(
        self, x: Tensor, skip1: Tensor, skip2: Tensor, time: Tensor, content: Tensor | None
    ) -> Tensor:
        """`[B, channels_in, H, W]` and skips `[B, skip_channels, H, W]` -> input of the next."""
        x = self.block1(torch.cat([x, skip2], dim=1), time)
        x = self.block2(torch.cat([x, skip1], dim=1), time)
        out: Tensor = self.resample(self.attention(x, content))
        return out


@NETWORKS.register("unet")
class ConditionalUNet(nn.Module):
    """The raw network output F(x_t, mu, t, e_d, e_c); see `modules.diffusion.prediction`.

    Args:
        width: channels at full resolution, an even number.
        multipliers: channels that each level ends with, in widths.
        context_dim: size of the degradation and content embeddings.
        degradation_prompt: whether the degradation embedding is used.
        half_resolution: whether the levels start at half the resolution of the image.
        shuffle: side of the squares of pixels that become channels at the input, and pixels again
            at the output: 2 makes everything between about a quarter of the work.
        attention: `all`, as published: linear in the first three levels, full in further ones and
            in the middle; `full`, without the linear one; `none`: each pixel depends on its
            neighbourhood alone, so that tiles of an image agree with the whole.
        channels: channels of an image.

    Raises:
        ValueError: a number is out of range, or the channels of a spatial transformer (in the
            middle, and in levels from the fourth on) are not a multiple of 32.
    """

    def __init__(
        self,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        context_dim: int = 512,
        degradation_prompt: bool = True,
        half_resolution: bool = False,
        shuffle: int = 1,
        attention: str = "all",
        channels: int = 3,
    ) -> None:
        super().__init__()
        _check_config(width, multipliers, context_dim, channels)
        if shuffle < 1:
            raise ValueError(f"shuffle must be positive, got {shuffle}")
        if attention not in ATTENTIONS:
            raise ValueError(f"attention is one of {', '.join(ATTENTIONS)}, got {attention!r}")
        self.channels, self.context_dim = channels, context_dim
        self.uses_prompt, self.uses_content = degradation_prompt, True
        self.gradient_checkpointing = False
        """In training, compute the levels' activations again for the gradient, to save memory."""
        # At full resolution half of it would do, but padding reaches the output.
        self.multiple = shuffle * 2 ** len(multipliers)
        embedding_dim, deepest = 4 * width, width * multipliers[-1]

        self.time = TimeEmbedding(width, embedding_dim)
        self.prompt = DegradationPrompt(context_dim, embedding_dim) if degradation_prompt else None
        pixels = channels * shuffle**2
        self.to_channels, self.to_pixels = nn.PixelUnshuffle(shuffle), nn.PixelShuffle(shuffle)
        self.stem = nn.Conv2d(2 * pixels, width, 7, padding=3, bias=False)
        self.shrink = _halve(width, width) if half_resolution else nn.Identity()
        self.encoder, self.decoder = _levels(
            width, multipliers, embedding_dim, context_dim, attention
        )
        self.middle_block1 = ResidualBlock(deepest, deepest, embedding_dim)
        self.middle_attention = SpatialTransformer(deepest, context_dim, attention != "none")
        self.middle_block2 = ResidualBlock(deepest, deepest, embedding_dim)
        self.grow = _double(width, width) if half_resolution else nn.Identity()
        self.last_block = ResidualBlock(2 * width, width, embedding_dim)
        self.head = nn.Conv2d(width, pixels, 3, padding=1)

    def forward(
        self,
        x_t: Tensor,
        mu: Tensor,
        t: int | float | Tensor,
        degradation: Tensor | None = None,
        content: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x_t: states `[B, C, H, W]`; H and W are above half of `multiple`, to which
                they are padded.
            mu: degraded images `[B, C, H, W]` in [0, 1].
            t: time in 0..T, one for all or `[B]`.
            degradation: degradation embeddings `[B, context_dim]`, not normalised; None adds no
                prompt, and a network without the prompt does not use them.
            content: content embeddings `[B, context_dim]`, not normalised; None adds no content.

        Returns:
            F `[B, C, H, W]`.

        Raises:
            ValueError: a shape that does not fit the others or the network.
        """
        self._check_images(x_t, mu)
        self._check_contexts(len(x_t), degradation, content)
        embedding = self.time(_times(t, x_t))
        if self.prompt is not None and degradation is not None:
            embedding = embedding + self.prompt(degradation)

        images = _pad(torch.cat([x_t - mu, mu], dim=1), self.multiple)
        stem = self.stem(self.to_channels(images))
        x, skips = self.shrink(stem), []
        for level in self.encoder:
            x, *level_skips = self._run(level, x, embedding, content)
            skips.append(level_skips)
        x = self.middle_block1(x, embedding)
        x = self.middle_block2(self.middle_attention(x, content), embedding)
        for level in self.decoder:
            x = self._run(level, x, *skips.pop(), embedding, content)
        x = self.last_block(torch.cat([self.grow(x), stem], dim=1), embedding)
        out: Tensor = self.to_pixels(self.head(x))[..., : x_t.shape[2], : x_t.shape[3]]
        return out

    def bytes_per_pixel(self, dtype: torch.dtype) -> float:
        """Peak memory of a call under autocast to `dtype`, for each pixel of the image, about."""
        channels = self.stem.out_channels / self.to_pixels.upscale_factor**2
        return channels * BYTES_PER_CHANNEL[dtype]

    def _run(self, level: nn.Module, *inputs: Tensor | None) -> Any:
        if self.gradient_checkpointing and self.training:
            return checkpoint(level, *inputs, use_reentrant=False)
        return level(*inputs)

    def _check_images(self, x_t: Tensor, mu: Tensor) -> None:
        if x_t.shape != mu.shape or x_t.ndim != 4 or x_t.shape[1] != self.channels:
            raise ValueError(
                f"x_t and mu must both be [B, {self.channels}, H, W]; "
                f"got {list(x_t.shape)} and {list(mu.shape)}"
            )
        if min(x_t.shape[2:]) <= self.multiple // 2:
            raise ValueError(
                f"images of {x_t.shape[2]} x {x_t.shape[3]} are too small to be reflected to a "
                f"multiple of {self.multiple}; give at least {self.multiple // 2 + 1} pixels a side"
            )

    def _check_contexts(self, B: int, degradation: Tensor | None, content: Tensor | None) -> None:
        for name, context in (("degradation", degradation), ("content", content)):
            if context is not None and context.shape != (B, self.context_dim):
                raise ValueError(
                    f"{name} must be [{B}, {self.context_dim}], got {list(context.shape)}; "
                    "set the network's context_dim to the embedding size of the CLIP model"
                )


def _check_config(width: int, multipliers: Sequence[int], context_dim: int, channels: int) -> None:
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must be one or more positive numbers, got {multipliers}")
    if width < 4 or width % 2:
        raise ValueError(f"width must be even and at least 4, got {width}")
    if context_dim < 1 or channels < 1:
        raise ValueError(f"context_dim and channels must be positive; {context_dim=}, {channels=}")


def _levels(
    width: int,
    multipliers: Sequence[int],
    embedding_dim: int,
    context_dim: int,
    attention: str,
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Encoder and decoder levels, each in the order they run in."""
    encoder, decoder = nn.ModuleList(), nn.ModuleList()
    sizes = itertools.pairwise([width, *(width * m for m in multipliers)])
    for i, (upper, lower) in enumerate(sizes):
        down = _keep(upper, lower) if i == len(multipliers) - 1 else _halve(upper, lower)
        up = _keep(lower, upper) if i == 0 else _double(lower, upper)
        linear = LinearAttention if attention == "all" else NoAttention
        attend = [
            linear(c)
            if i < LINEAR_LEVELS
            else SpatialTransformer(c, context_dim, attention != "none")
            for c in (upper, lower)
        ]
        encoder.append(EncoderLevel(upper, embedding_dim, attend[0], down))
        decoder.insert(0, DecoderLevel(lower, upper, embedding_dim, attend[1], up))
    return encoder, decoder


def _keep(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)


def _halve(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1)


def _double(channels_in: int, channels_out: int) -> nn.Module:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv)


def _pad(x: Tensor, multiple: int) -> Tensor:
    """Reflect images at the bottom and right up to a multiple in height and width."""
    # No negative number before the modulo: torch.compile fails on it where sizes vary.
    right, bottom = ((multiple - x.shape[side] % multiple) % multiple for side in (3, 2))
    return F.pad(x, (0, right, 0, bottom), mode="reflect")


def _times(t: int | float | Tensor, like: Tensor) -> Tensor:
    """Times `[B]` in float32 (float64 for float64 images): half precision would round them."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not isinstance(t, Tensor):
        return torch.full((len(like),), t, dtype=dtype, device=like.device)
    times = t.to(like.device, dtype)
    if times.ndim > 1 or times.numel() not in (1, len(like)):
        raise ValueError(f"t must be a number or [{len(like)}], got {list(times.shape)}")
    return times.expand(len(like))

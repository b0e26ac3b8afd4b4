"""Building blocks of the restorer's U-Net (IR-SDE, arXiv 2301.11699; DA-CLIP, arXiv 2310.01018).

Feature maps are `[B, C, H, W]`, the time embedding `[B, E]`, the content embedding
`[B, context_dim]`; all floats, unbounded. Both kinds of attention carry their own norm and residual
path, and take the content whether they use it or not, so that a level can hold either.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_CHANNELS = 32
"""Channels of one attention head; a spatial transformer has as many heads as fit."""


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, with a gain and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]`, in the dtype of the input."""
        # Linear attention divides by H W, so the variance under the root is often below eps. The
        # reference takes 1e-3 below float32, and so departs from what its weights were trained to.
        y = F.layer_norm(x.movedim(1, -1), self.gain.shape, self.gain, eps=1e-5)
        return y.movedim(-1, 1).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time through a two-layer MLP.

    e = [sin(t w), cos(t w)],  w_k = 10000^(-k / (n - 1)),  k = 0..n - 1,  n = channels / 2
    """

    def __init__(self, channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.expand = nn.Linear(channels, embedding_dim)
        self.project = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times `[B]` (float32 or float64) as `[B, E]` in the dtype of the weights."""
        n = self.channels // 2
        k = torch.arange(n, dtype=t.dtype, device=t.device)
        angles = t[:, None] * torch.exp(k * (-math.log(10000) / (n - 1)))
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.expand.weight.dtype)
        embedding: Tensor = self.project(F.gelu(self.expand(waves)))
        return embedding


class DegradationPrompt(nn.Module):
    """The degradation embedding as an addition to the time embedding.

    p = W (softmax(MLP(e_d)) * v),  v a learned vector
    """

    def __init__(self, context_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(context_dim, embedding_dim)
        self.gate = nn.Linear(embedding_dim, embedding_dim)
        self.vector = nn.Parameter(torch.rand(embedding_dim))
        self.project = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, degradation: Tensor) -> Tensor:
        """Turn embeddings `[B, context_dim]` into prompts `[B, E]`."""
        gate = self.gate(F.silu(self.expand(degradation))).softmax(dim=1)
        prompt: Tensor = self.project(gate * self.vector)
        return prompt


class ResidualBlock(nn.Module):
    """Two convolutions without normalisation, the first modulated by the time embedding (FiLM).

    h = silu(conv(x) (1 + scale) + shift),  y = silu(conv(h)) + skip(x)
    """

    def __init__(self, channels_in: int, channels_out: int, embedding_dim: int) -> None:
        super().__init__()
        self.film = nn.Linear(embedding_dim, 2 * channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.skip: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.skip = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`[B, channels_in, H, W]`, `[B, E]` -> `[B, channels_out, H, W]`."""
        scale, shift = self.film(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.conv1(x) * (1 + scale) + shift)
        y: Tensor = F.silu(self.conv2(h)) + self.skip(x)
        return y


class LinearAttention(nn.Module):
    """Self-attention in time and memory linear in the pixels (Shen et al., arXiv 1812.01243).

    y = W_o (K^T V)^T Q / (sqrt(d) H W),  V = W_v x,
    with Q = softmax(W_q x) over the channels of a head and K = softmax(W_k x) over pixels. Since
    K^T V = (K^T x) W_v^T, the weights act on small matrices: V and the heads' output, each far
    wider than x, are never formed.
    """

    heads = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = self.heads * HEAD_CHANNELS
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels)
        self.out_norm = ChannelNorm(channels)

    def forward(self, x: Tensor, content: Tensor | None = None) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`, the residual included; the content is not used."""
        B, C, H, W = x.shape
        heads = (self.heads, HEAD_CHANNELS)
        W_q, W_k, W_v = self.to_qkv.weight.chunk(3)
        W_o = self.to_out.weight.mT.reshape(*heads, C)
        tokens = self.norm(x).flatten(2).mT

        K = (W_k @ tokens.mT).softmax(dim=-1)
        KV = (K @ tokens).reshape(B, *heads, C) @ W_v.reshape(*heads, C).mT
        # The 1 / (H W) is the reference's, on top of a softmax that already averages.
        KVO = (KV * (HEAD_CHANNELS**-0.5 / (H * W)) @ W_o).flatten(1, 2)
        Q = F.linear(tokens, W_q).reshape(B, H * W, *heads).softmax(dim=-1).flatten(2)
        y: Tensor = self.out_norm(torch.baddbmm(self.to_out.bias, Q, KVO).mT.reshape(x.shape))
        return x + y


class NoAttention(nn.Module):
    """In the place of an attention: the image as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, content: Tensor | None = None) -> Tensor:
        """`[B, C, H, W]` -> the same."""
        return x


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens, through the fused kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`."""
        q, k, v = (
            to(tokens).unflatten(-1, (-1, HEAD_CHANNELS)).transpose(1, 2)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return out


class ContentAttention(nn.Module):
    """Cross-attention of every token to the content embedding.

    The content is a single key, so the softmax over keys is 1 whatever the query: what is left of
    attention is its value, the same for every token. Queries and keys would be dead weight.
    """

    def __init__(self, channels: int, context_dim: int) -> None:
        super().__init__()
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, content: Tensor) -> Tensor:
        """`[B, context_dim]` -> `[B, 1, C]`, to be added to every token."""
        out: Tensor = self.to_out(self.to_v(content))
        return out[:, None]


class FeedForward(nn.Module):
    """GEGLU (Shazeer, arXiv 2002.05202): y = W_out (a * gelu(b)), [a, b] = W_in x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, 8 * channels)
        self.project = nn.Linear(4 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`."""
        value, gate = self.expand(tokens).chunk(2, dim=-1)
        out: Tensor = self.project(value * F.gelu(gate))
        return out


class SpatialTransformer(nn.Module):
    """Self-attention over all pixels, the content added to each, and a feed-forward network.

    Starts as x + norm(x): the last projection is zero at first. Without `attends` there is neither
    self-attention nor group norm: each pixel is transformed alone, whatever the image's size.

    Raises:
        ValueError: `channels` is not a multiple of 32, the head and group-norm size.
    """

    def __init__(self, channels: int, context_dim: int, attends: bool = True) -> None:
        super().__init__()
        if channels % HEAD_CHANNELS:
            raise ValueError(
                f"a spatial transformer of {channels} channels does not divide into heads of "
                f"{HEAD_CHANNELS}; choose width and multipliers whose product does"
            )
        self.norm = ChannelNorm(channels)
        self.attends = attends
        if attends:
            self.group_norm = nn.GroupNorm(32, channels, eps=1e-6)
            self.self_norm = nn.LayerNorm(channels)
            self.self_attention = SelfAttention(channels)
        self.project_in = nn.Linear(channels, channels)
        self.content_attention = ContentAttention(channels, context_dim)
        self.feed_norm = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels)
        self.project_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, x: Tensor, content: Tensor | None = None) -> Tensor:
        """`[B, C, H, W]`, `[B, context_dim]` or None (nothing is added) -> `[B, C, H, W]`."""
        y: Tensor = self.norm(x)
        normed: Tensor = self.group_norm(y) if self.attends else y
        tokens: Tensor = self.project_in(normed.flatten(2).mT)
        if self.attends:
            tokens = tokens + self.self_attention(self.self_norm(tokens))
        if content is not None:
            tokens = tokens + self.content_attention(content)
        tokens = tokens + self.feed_forward(self.feed_norm(tokens))
        out: Tensor = self.project_out(tokens).mT.reshape(x.shape)
        # Residual twice, inside the norm and outside of it, as the reference has it.
        return x + y + out

"""The plain way to write the networks: every attention by its formula, and no memory layout.

The networks are ours with some of their modules replaced, in place, by plain ones that have the
same weights under the same names; what is not replaced is plain already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modules.networks.blocks import (
    HEAD_CHANNELS,
    ChannelNorm,
    ContentAttention,
    LinearAttention,
    SelfAttention,
    SpatialTransformer,
)


class PlainNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * gain, over the channels of each pixel."""

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.gain = norm.gain

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]`, float32."""
        variance = x.var(dim=1, keepdim=True, unbiased=False)
        mean = x.mean(dim=1, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.gain[:, None, None]


class PlainLinearAttention(nn.Module):
    """V and every head's output are formed, at every pixel."""

    def __init__(self, attention: LinearAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.norm, self.out_norm = PlainNorm(attention.norm), PlainNorm(attention.out_norm)
        self.to_qkv, self.to_out = _conv(attention.to_qkv), _conv(attention.to_out)

    def forward(self, x: Tensor, content: Tensor | None = None) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`; the content is not used."""
        B, _, H, W = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(B, 3, self.heads, HEAD_CHANNELS, H * W)
        q, k, v = qkv.unbind(dim=1)
        q = q.softmax(dim=-2) * HEAD_CHANNELS**-0.5
        k, v = k.softmax(dim=-1), v / (H * W)
        context = torch.einsum("bhdn,bhen->bhde", k, v)
        out = torch.einsum("bhde,bhdn->bhen", context, q).reshape(B, -1, H, W)
        y: Tensor = x + self.out_norm(self.to_out(out))
        return y


class PlainAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V, the matrix of scores in full."""

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear, out: nn.Linear) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = q, k, v, out

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Of tokens `[B, N, C]` to keys `[B, M, context_dim]`: `[B, N, C]`."""
        q, k, v = (
            _heads(x, HEAD_CHANNELS)
            for x in (self.to_q(tokens), self.to_k(context), self.to_v(context))
        )
        out: Tensor = self.to_out(_attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class PlainTransformer(nn.Module):
    """A spatial transformer that attends to the content, its one key, as to any keys.

    The queries' norm and the weights of queries and keys, which ours does not have, are random;
    they take no part in the result.
    """

    def __init__(self, ours: SpatialTransformer) -> None:
        super().__init__()
        channels = ours.project_in.in_features
        self.norm, self.group_norm = PlainNorm(ours.norm), ours.group_norm
        self.project_in, self.project_out = ours.project_in, ours.project_out
        self.self_norm, self.self_attention = ours.self_norm, _own(ours.self_attention)
        self.content_norm = nn.LayerNorm(channels)
        self.content_attention = _cross(ours.content_attention, channels)
        self.feed_norm, self.feed_forward = ours.feed_norm, ours.feed_forward

    def forward(self, x: Tensor, content: Tensor) -> Tensor:
        """`[B, C, H, W]`, `[B, context_dim]` -> `[B, C, H, W]`."""
        y: Tensor = self.norm(x)
        tokens: Tensor = self.project_in(self.group_norm(y).flatten(2).mT)
        normed = self.self_norm(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        tokens = tokens + self.content_attention(self.content_norm(tokens), content[:, None])
        tokens = tokens + self.feed_forward(self.feed_norm(tokens))
        out: Tensor = self.project_out(tokens).mT.reshape(x.shape)
        return x + y + out


class PlainMultihead(nn.Module):
    """CLIP's multi-head self-attention, the matrix of scores in full."""

    def __init__(self, ours: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = ours.in_proj_weight, ours.in_proj_bias
        self.out_proj, self.head_dim = ours.out_proj, ours.head_dim

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """Tokens `[B, N, C]`, thrice the same -> `[B, N, C]`; the mask is added to the scores."""
        qkv = nn.functional.linear(q, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (_heads(x, self.head_dim) for x in qkv.chunk(3, dim=-1))
        return self.out_proj(_attend(q, k, v, attn_mask).transpose(1, 2).flatten(2)), None


def make_plain(network: nn.Module) -> nn.Module:
    """Replace what is not plain in a `ConditionalUNet` or a `DaClip`, in place."""
    kinds: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        LinearAttention: PlainLinearAttention,
        SpatialTransformer: PlainTransformer,
        nn.MultiheadAttention: PlainMultihead,
    }
    _replace(network, kinds)
    return network.to(memory_format=torch.contiguous_format)


def _replace(
    module: nn.Module, kinds: Mapping[type[nn.Module], Callable[[Any], nn.Module]]
) -> None:
    for name, child in module.named_children():
        if make := kinds.get(type(child)):
            setattr(module, name, make(child).train(child.training))
        else:
            _replace(child, kinds)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    attended: Tensor = scores.softmax(dim=-1) @ v
    return attended


def _heads(x: Tensor, channels: int) -> Tensor:
    """`[B, N, C]` -> `[B, heads, N, channels]`."""
    heads: Tensor = x.unflatten(-1, (-1, channels)).transpose(1, 2)
    return heads


def _own(ours: SelfAttention) -> PlainAttention:
    return PlainAttention(ours.to_q, ours.to_k, ours.to_v, ours.to_out)


def _cross(ours: ContentAttention, channels: int) -> PlainAttention:
    q = nn.Linear(channels, channels, bias=False)
    k = nn.Linear(ours.to_v.in_features, channels, bias=False)
    return PlainAttention(q, k, ours.to_v, ours.to_out)


def _conv(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    conv.weight = nn.Parameter(linear.weight.detach()[..., None, None])
    if linear.bias is not None:
        conv.bias = nn.Parameter(linear.bias.detach())
    return conv

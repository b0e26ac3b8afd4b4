"""Contrastive losses of DA-CLIP, on one device or over all ranks.

Features are `[B, D]` floats of unit length, and `logit_scale` is the factor of their cosines, the
exponential of the learnt parameter. Logits are computed in float32 at least, under autocast too:
a cosine times 100 leaves bfloat16 no digits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def info_nce(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of CLIP (arXiv 2103.00020): pair i's image and text match, no others.

        -1/2 mean_i [ln softmax_j(s_ij) + ln softmax_j(s_ji)]_(j = i),  s_ij = scale u_i . v_j

    Args:
        image_features: u `[B, D]`, of unit length.
        text_features: v `[B, D]`, of unit length.
        logit_scale: scale, a scalar.
    """
    logits = _logits(image_features, text_features, logit_scale)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2


def multi_positive(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, ids: Tensor
) -> Tensor:
    """Symmetric InfoNCE where all samples of one id match each other.

        1/2 mean_i [KL(p_i | softmax_j(s_ij)) + KL(p_i | softmax_j(s_ji))],  p_ij = 1[same id] / n_i

    with n_i the number of samples of i's id. It is the cross-entropy to those targets less their
    entropy, mean_i ln n_i, so that 0 is perfect whatever the batch. For samples that share not
    only the id but the text features, the reference's `info_nce` is exactly this loss plus that
    entropy: it has the same gradient and a floor that looks like failure to converge.

    Args:
        image_features: u `[B, D]`, of unit length.
        text_features: v `[B, D]`, of unit length.
        logit_scale: scale, a scalar.
        ids: what each sample shows, int `[B]`.
    """
    logits = _logits(image_features, text_features, logit_scale)
    same = (ids[:, None] == ids[None, :]).to(logits)
    count = same.sum(dim=1)
    targets = same / count
    cross_entropy = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.mT, targets)) / 2
    return cross_entropy - count.log().mean()


def gather(features: Tensor) -> Tensor:
    """All ranks' features `[ranks B, ...]` in rank order; without torch.distributed, the input.

    Every rank must give the same shape. When every rank computes the whole loss from what is
    gathered, and DDP averages the gradients, they are those of the joint batch on one rank.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return features
    gathered: Tensor = _Gather.apply(features)
    return gathered


class _Gather(torch.autograd.Function):
    """Concatenation over ranks; backwards, the sum over ranks of this rank's share."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _logits(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """scale u_i . v_j: `[B, B]`, images along the rows."""
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    with torch.autocast(image_features.device.type, enabled=False):
        return logit_scale.to(dtype) * image_features.to(dtype) @ text_features.to(dtype).mT

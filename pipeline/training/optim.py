"""Optimizer groups and learning rate schedule, shared by both stages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn


def warmup_cosine(step: int, warmup: int, total: int, floor: float) -> float:
    """Learning rate at a step, as a share of its peak.

    Rises linearly to 1 over `warmup` steps, then falls along half a cosine to `floor` at `total`.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def decay_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups in which weight decay spares vectors and scalars.

    These are the biases, the norms' gains, the class embedding and the logit scale. Parameters
    that do not train are left out.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2]},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]

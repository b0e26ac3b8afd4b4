"""Losses of stage (b): how far a prediction is from the truth, for each image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from modules.diffusion import sde
from modules.diffusion.prediction import Prediction
from modules.diffusion.schedule import NoiseSchedule

Loss = Callable[[NoiseSchedule, Prediction, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(schedule, prediction, x_t, x_0, mu, t) -> the loss of each image, `[B]`."""


def matching(
    schedule: NoiseSchedule, predicted: Prediction, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Tensor
) -> Tensor:
    """L1 to the optimum reverse step, as published."""
    return sde.matching_loss(schedule, x_t, x_0, mu, predicted.epsilon, t)


def l1(
    schedule: NoiseSchedule, predicted: Prediction, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Tensor
) -> Tensor:
    """L1 to the clean image."""
    return (predicted.x_0 - x_0).abs().flatten(1).mean(dim=1)


LOSSES: dict[str, Loss] = {"matching": matching, "l1": l1}


def find_loss(name: str) -> Loss:
    """Look a loss up by its configuration name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; choose one of: {', '.join(LOSSES)}")
    return LOSSES[name]

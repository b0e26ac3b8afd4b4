"""Training losses of the restorer: how far each image's prediction is from the truth."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from modules.diffusion import sde
from modules.diffusion.prediction import Prediction
from modules.diffusion.schedule import NoiseSchedule
from modules.registry import Registry

Loss = Callable[[NoiseSchedule, Prediction, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(schedule, prediction, x_t, x_0, mu, t) -> the loss of each image, `[B]`."""
LOSSES: Registry[Loss] = Registry("loss")


@LOSSES.register("matching")
def matching(
    schedule: NoiseSchedule, predicted: Prediction, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Tensor
) -> Tensor:
    """L1 to the optimum reverse step, as published."""
    return sde.matching_loss(schedule, x_t, x_0, mu, predicted.epsilon, t)


@LOSSES.register("l1")
def l1(
    schedule: NoiseSchedule, predicted: Prediction, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Tensor
) -> Tensor:
    """L1 to the clean image."""
    return (predicted.x_0 - x_0).abs().flatten(1).mean(dim=1)

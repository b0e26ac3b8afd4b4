"""Timesteps: which a sampler visits, and which training draws.

A sampler visits whole timesteps T = t_0 > t_1 > ... > t_num_steps = 0. The network is called at all
of them but 0, where the image is clean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modules.diffusion.schedule import NoiseSchedule, half_log_snr
from modules.registry import Registry

TimestepSpacing = Callable[[NoiseSchedule, int], list[int]]
"""(schedule, num_steps) -> timesteps; a ValueError where `num_steps` is not in 1..T."""
TIMESTEP_SPACINGS: Registry[TimestepSpacing] = Registry("timestep spacing")


@TIMESTEP_SPACINGS.register("uniform")
def uniform_timesteps(schedule: NoiseSchedule, num_steps: int) -> list[int]:
    """As evenly spaced in t as whole numbers allow."""
    _check(schedule.T, num_steps)
    return [round(schedule.T * (num_steps - i) / num_steps) for i in range(num_steps + 1)]


@TIMESTEP_SPACINGS.register("log_snr")
def log_snr_timesteps(schedule: NoiseSchedule, num_steps: int) -> list[int]:
    """As evenly spaced in half-log-SNR as distinct whole numbers allow.

    The half-log-SNR is infinite at t = 0, so the spacing is that of `num_steps` equal intervals
    from T to 1, in which 0 then takes the place of 1: the last step has no finite length.
    Where the spacing is finer than whole times are, which is first near 0, it takes every time.
    """
    T = schedule.T
    _check(T, num_steps)
    # On the CPU, so that every device visits the same timesteps.
    levels = half_log_snr(schedule.to("cpu"), torch.arange(1, T + 1)).flatten().double()
    wanted = torch.linspace(float(levels[-1]), float(levels[0]), num_steps + 1, dtype=levels.dtype)
    nearest = (levels - wanted[:-1, None]).abs().argmin(dim=1) + 1
    times = [0]
    for t in reversed(nearest.tolist()):
        times.append(max(t, times[-1] + 1))
    return [min(t, T - i) for i, t in enumerate(reversed(times))]


def _check(T: int, num_steps: int) -> None:
    if not 1 <= num_steps <= T:
        raise ValueError(f"num_steps must be in 1..{T}, got {num_steps}")


def sample_timesteps(
    generators: Sequence[torch.Generator], T: int, timestep_power: float = 0
) -> Tensor:
    """A timestep in 1..T for each image, `[B]`, drawn by its generator, on the CPU.

    Their density rises as t^timestep_power: t = ceil(T u^(1 / (1 + timestep_power))), u uniform.
    """
    if not timestep_power:
        return torch.stack([torch.randint(1, T + 1, (), generator=g) for g in generators])
    draws = [torch.rand((), generator=g, dtype=torch.float64) for g in generators]
    return (T * torch.stack(draws) ** (1 / (1 + timestep_power))).ceil().long().clamp(1, T)

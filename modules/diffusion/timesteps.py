"""Time grids: the whole times T = t_0 > t_1 > ... > t_calls = 0 of a sampler's states.

The network is called at all of them but 0, where the image is clean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modules.diffusion.schedule import NoiseSchedule, half_log_snr

TimestepSpacing = Callable[[NoiseSchedule, int], list[int]]
"""(schedule, calls) -> times; a ValueError where `calls` is not in 1..T."""


def uniform_timesteps(schedule: NoiseSchedule, calls: int) -> list[int]:
    """As evenly spaced in t as whole numbers allow."""
    _check(schedule.T, calls)
    return [round(schedule.T * (calls - i) / calls) for i in range(calls + 1)]


def log_snr_timesteps(schedule: NoiseSchedule, calls: int) -> list[int]:
    """As evenly spaced in half-log-SNR as distinct whole numbers allow.

    The half-log-SNR is infinite at t = 0, so the spacing is that of `calls` equal intervals from T
    to 1, in which 0 then takes the place of 1: the last step is the one interval without a length.
    Where the spacing is finer than whole times are, which is first near 0, it takes every time.
    """
    T = schedule.T
    _check(T, calls)
    # On the CPU, that every device walks through the same times.
    levels = half_log_snr(schedule.to("cpu"), torch.arange(1, T + 1)).flatten().double()
    wanted = torch.linspace(float(levels[-1]), float(levels[0]), calls + 1, dtype=levels.dtype)
    nearest = (levels - wanted[:-1, None]).abs().argmin(dim=1) + 1
    times = [0]
    for t in reversed(nearest.tolist()):
        times.append(max(t, times[-1] + 1))
    return [min(t, T - i) for i, t in enumerate(reversed(times))]


TIMESTEP_SPACINGS: dict[str, TimestepSpacing] = {
    "uniform": uniform_timesteps,
    "log_snr": log_snr_timesteps,
}


def find_timestep_spacing(name: str) -> TimestepSpacing:
    """Look a grid up by its configuration name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in TIMESTEP_SPACINGS:
        raise ValueError(
            f"unknown timestep spacing {name!r}; choose one of: {', '.join(TIMESTEP_SPACINGS)}"
        )
    return TIMESTEP_SPACINGS[name]


def _check(T: int, calls: int) -> None:
    if not 1 <= calls <= T:
        raise ValueError(f"the number of network calls must be in 1..{T}, got {calls}")


def sample_timesteps(
    generators: Sequence[torch.Generator], T: int, late_times: float = 0
) -> Tensor:
    """A time in 1..T of each image, `[B]`, drawn by its generator, a CPU's, on the CPU.

    The density of times rises as t^late_times: t = ceil(T u^(1 / (1 + late_times))), u uniform.
    """
    if not late_times:
        return torch.stack([torch.randint(1, T + 1, (), generator=g) for g in generators])
    draws = [torch.rand((), generator=g, dtype=torch.float64) for g in generators]
    return (T * torch.stack(draws) ** (1 / (1 + late_times))).ceil().long().clamp(1, T)

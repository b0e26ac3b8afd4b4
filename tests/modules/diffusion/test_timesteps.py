"""Time grids: whole, distinct, from T to 0, and evenly spaced as far as that allows."""

import itertools
import math

import pytest
import torch

from modules.diffusion.schedule import NOISE_SCHEDULES, half_log_snr, make_noise_schedule
from modules.diffusion.timesteps import (
    TIMESTEP_SPACINGS,
    log_snr_timesteps,
    uniform_timesteps,
)

grids = pytest.mark.parametrize("name", sorted(TIMESTEP_SPACINGS))
schedules = pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))


@grids
@schedules
def test_times_fall_strictly_from_the_first_to_the_last(schedule: str, name: str) -> None:
    for T in (1, 2, 3, 20, 99, 100):
        made = make_noise_schedule(schedule, num_timesteps=T)
        for calls in range(1, T + 1):
            times = TIMESTEP_SPACINGS.find(name)(made, calls)
            assert (times[0], times[-1], len(times)) == (T, 0, calls + 1)
            assert all(type(t) is int for t in times)
            assert all(t > s for t, s in itertools.pairwise(times))


def test_uniform_times_are_even() -> None:
    for T, calls in itertools.product((1, 2, 20, 99, 100), range(1, 101)):
        if calls > T:
            continue
        times = uniform_timesteps(make_noise_schedule(num_timesteps=T), calls)
        gaps = {t - s for t, s in itertools.pairwise(times)}
        assert gaps <= {math.floor(T / calls), math.ceil(T / calls)}
        exact = [T - i * T / calls for i in range(calls + 1)]
        assert all(abs(t - e) <= 0.5 for t, e in zip(times, exact, strict=True))
    assert uniform_timesteps(make_noise_schedule(), 4) == [100, 75, 50, 25, 0]


@schedules
@pytest.mark.parametrize("calls", [1, 2, 5, 10])
def test_log_snr_times_are_even_in_the_half_log_snr(schedule: str, calls: int) -> None:
    """Each is the whole time nearest to its place; 0 stands where time 1 would."""
    schedule = make_noise_schedule(schedule, num_timesteps=1000, dtype=torch.float64)
    levels = half_log_snr(schedule, torch.arange(1, 1001)).flatten()
    times = log_snr_timesteps(schedule, calls)
    for i, t in enumerate(times[:-1]):
        wanted = levels[-1] + i / calls * (levels[0] - levels[-1])
        assert (levels - wanted).abs().argmin().item() + 1 == t


def test_log_snr_times_of_the_recipe() -> None:
    assert log_snr_timesteps(make_noise_schedule(), 5) == [100, 82, 60, 29, 7, 0]
    # Where the spacing is finer than whole times, it takes each of them.
    assert log_snr_timesteps(make_noise_schedule(), 50)[-17:] == [18, *range(15, -1, -1)]
    assert log_snr_timesteps(make_noise_schedule(), 100) == list(range(100, -1, -1))


@grids
@pytest.mark.parametrize("calls", [0, 101, -1])
def test_a_number_of_calls_out_of_range_is_refused(calls: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"1..100, got {calls}"):
        TIMESTEP_SPACINGS.find(name)(make_noise_schedule(), calls)


def test_unknown_grid_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'karras'.*uniform, log_snr"):
        TIMESTEP_SPACINGS.find("karras")

"""The few-step samplers beside diffusers' schedulers, which get the same signal levels alpha_t.

Theirs run on u = (x - mu) / lambda, with alphas_cumprod = alpha_t^2; their index i is our time
i + 1. `pytest --log-cli-level=INFO` shows how far they are apart.
"""

import itertools
import logging

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from modules.diffusion.prediction import Prediction
from modules.diffusion.samplers import Problem, Sampler, make_sampler, sample_states
from modules.diffusion.schedule import NOISE_SCHEDULES, make_noise_schedule
from modules.diffusion.sde import epsilon_from_sample
from modules.diffusion.timesteps import TIMESTEP_SPACINGS, uniform_timesteps
from tests.golden_vectors import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

log = logging.getLogger(__name__)

T, SHAPE = 100, (2, 3, 8, 8)
GENERATOR = torch.Generator().manual_seed(6)
MU, START, *DRAWS = torch.randn((T + 2, *SHAPE), generator=GENERATOR, dtype=torch.float64)

schedules = pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))
few_and_many = pytest.mark.parametrize("calls", [1, 2, 3, 5, 10, 20, 50, 100])


def guess(u: Tensor, t: int) -> Tensor:
    """u_0 of a network that is wrong, and not linear."""
    return torch.tanh(u * (1.5 - t / T)) + 0.3 * torch.sin(5 * u + t)


def ours(sampler: Sampler, schedule: str, times: list[int]) -> Tensor:
    """The final u."""
    schedule = make_noise_schedule(schedule, dtype=torch.float64)
    draws = iter(DRAWS)

    def model(x: Tensor, mu: Tensor, t: int) -> Prediction:
        x_0 = mu + schedule.lambda_ * guess((x - mu) / schedule.lambda_, t)
        return Prediction(x_0, epsilon_from_sample(schedule, x, x_0, mu, t))

    x_T = MU + schedule.lambda_ * START
    *_, x = sample_states(
        sampler, Problem(schedule, model, MU, lambda like: next(draws)), x_T, times
    )
    return (x - MU) / schedule.lambda_


def alphas_cumprod(schedule: str) -> Tensor:
    return make_noise_schedule(schedule, dtype=torch.float64).alpha[1:] ** 2


def their_ddim(schedule: str, times: list[int], eta: float) -> Tensor:
    scheduler = DDIMScheduler(T, prediction_type="sample", clip_sample=False)
    scheduler.alphas_cumprod = alphas_cumprod(schedule)
    scheduler.num_inference_steps = len(times) - 1
    u = START
    for t, z in zip(times[:-1], DRAWS, strict=False):
        u = scheduler.step(guess(u, t), t - 1, u, eta=eta, variance_noise=z).prev_sample
    return u


def their_dpm_solver(schedule: str, times: list[int], algorithm: str) -> Tensor:
    scheduler = DPMSolverMultistepScheduler(T, prediction_type="sample", algorithm_type=algorithm)
    indices = torch.tensor(times[:-1]) - 1
    scheduler.set_timesteps(timesteps=indices.tolist())
    alphas = alphas_cumprod(schedule)[indices]
    scheduler.sigmas = torch.cat([torch.sqrt((1 - alphas) / alphas), torch.zeros(1)])
    u = START
    for t, z in zip(times[:-1], DRAWS, strict=False):
        u = scheduler.step(guess(u, t), t - 1, u, variance_noise=z).prev_sample
    return u


@schedules
@pytest.mark.parametrize("calls", [1, 2, 5, 10, 20, 50, 100])
@pytest.mark.parametrize("eta", [0, 0.3, 1])
def test_ddim_is_theirs(eta: float, calls: int, schedule: str) -> None:
    times = uniform_timesteps(make_noise_schedule(schedule), calls)
    assert {t - s for t, s in itertools.pairwise(times)} == {T // calls}  # all that theirs knows
    theirs = their_ddim(schedule, times, eta)
    error = relative_error(ours(make_sampler("ddim", eta), schedule, times), theirs)
    log.info("ddim, eta %g, %s, %d calls: %.1e", eta, schedule, calls, error)
    assert error < 1e-10


@schedules
@few_and_many
@pytest.mark.parametrize("grid", sorted(TIMESTEP_SPACINGS))
@pytest.mark.parametrize(
    ("name", "algorithm"), [("dpmpp_2m", "dpmsolver++"), ("dpmpp_2m_sde", "sde-dpmsolver++")]
)
def test_dpm_solvers_are_theirs(
    name: str, algorithm: str, grid: str, calls: int, schedule: str
) -> None:
    """Theirs keeps its states in float32."""
    times = TIMESTEP_SPACINGS.find(grid)(make_noise_schedule(schedule), calls)
    theirs = their_dpm_solver(schedule, times, algorithm)
    error = relative_error(ours(make_sampler(name), schedule, times), theirs)
    log.info("%s, %s, %s, %d calls: %.1e", name, grid, schedule, calls, error)
    assert error < 1e-5

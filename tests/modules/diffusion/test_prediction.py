"""Whatever the network is taught to predict, the same pair (x_0, noise) comes out."""

import pytest
import torch
from torch import Tensor

from modules.diffusion.prediction import PREDICTION_TYPES
from modules.diffusion.schedule import at, make_noise_schedule
from modules.diffusion.sde import diffuse

TABLES = make_noise_schedule(dtype=torch.float64)
EVERY_TIME = torch.arange(1, 101)

names = pytest.mark.parametrize("name", sorted(PREDICTION_TYPES))


def images(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A clean image, a degraded one and noise for each time 1..100."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, 100, 3, 4, 5), generator=generator, dtype=torch.float64)
    return list(x.to(dtype))


def right_answer(name: str, x_0: Tensor, mu: Tensor, noise: Tensor) -> Tensor:
    """What a perfect network says, from the definition of each target."""
    alpha = at(TABLES.alpha, EVERY_TIME)
    u_0 = (x_0 - mu) / (50 / 255)
    velocity = alpha * noise - torch.sqrt(1 - alpha**2) * u_0
    return {"epsilon": noise, "sample": x_0 - mu, "v_prediction": velocity}[name]


@names
def test_a_perfect_network_gives_clean_image_and_noise(name: str) -> None:
    x_0, mu, noise = images()
    x_t = diffuse(TABLES, x_0, mu, EVERY_TIME, noise)
    F = right_answer(name, x_0, mu, noise)
    found = PREDICTION_TYPES.find(name)(TABLES, F, x_t, mu, EVERY_TIME)
    assert torch.allclose(found.x_0, x_0, rtol=0, atol=1e-10)
    assert torch.allclose(found.epsilon, noise, rtol=0, atol=1e-10)


@names
def test_any_output_gives_a_pair_consistent_with_the_state(name: str) -> None:
    x_t, mu, F = images()
    found = PREDICTION_TYPES.find(name)(TABLES, F, x_t, mu, EVERY_TIME)
    again = diffuse(TABLES, found.x_0, mu, EVERY_TIME, found.epsilon)
    assert torch.allclose(again, x_t, rtol=0, atol=1e-10)


@names
def test_one_time_for_all_or_a_time_for_each(name: str) -> None:
    x_t, mu, F = images()
    convert = PREDICTION_TYPES.find(name)
    together = convert(TABLES, F, x_t, mu, EVERY_TIME)
    for i, t in enumerate(EVERY_TIME.tolist()):
        alone = convert(TABLES, F[i : i + 1], x_t[i : i + 1], mu[i : i + 1], t)
        assert torch.allclose(alone.x_0[0], together.x_0[i], rtol=1e-14)
        assert torch.allclose(alone.epsilon[0], together.epsilon[i], rtol=1e-14)


@names
def test_inputs_are_left_alone(name: str) -> None:
    x_t, mu, F = images()
    PREDICTION_TYPES.find(name)(TABLES, F, x_t, mu, EVERY_TIME)
    assert all(torch.equal(x, y) for x, y in zip((x_t, mu, F), images(), strict=True))


@names
def test_half_precision_outputs_are_used_in_float32(name: str) -> None:
    x_t, mu, F = images(torch.float32)
    convert, schedule, half = PREDICTION_TYPES.find(name), make_noise_schedule(), F.bfloat16()
    for t in (40, EVERY_TIME):
        found, expected = (convert(schedule, out, x_t, mu, t) for out in (half, half.float()))
        assert found.x_0.dtype == torch.float32
        assert torch.equal(found.x_0, expected.x_0)
        assert torch.equal(found.epsilon.float(), expected.epsilon)


def test_unknown_name_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'noise'.*epsilon, sample, v_prediction"):
        PREDICTION_TYPES.find("noise")

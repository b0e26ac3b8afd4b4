"""Restoring: alike in any batch, tiled or whole, of any dtype and size, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modules.diffusion.timesteps import TIMESTEP_SPACINGS
from modules.inference.restore import (
    Conditions,
    RestorationModel,
    make_sampling,
    place_model,
    restore,
)
from tests.restoring import tiny_controller, tiny_denoiser

CPU = torch.device("cpu")


@pytest.fixture
def model() -> RestorationModel:
    sampling = make_sampling("posterior", 0, 2, "uniform")
    return place_model(tiny_controller(), tiny_denoiser(), sampling, CPU, "float32")


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def difference(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


def test_image_and_its_seed_give_one_result_in_any_batch(model: RestorationModel) -> None:
    degraded = images(3, 3, 90, 70)
    for tile in (None, 64):
        together = restore(model, degraded, [7, 8, 7], tile=tile)
        assert together.dtype == torch.uint8 and together.shape == degraded.shape
        for i, seed in enumerate((7, 8, 7)):
            alone = restore(model, degraded[i : i + 1], [seed], tile=tile)
            assert difference(alone[0], together[i]) <= 1
        assert difference(restore(model, degraded[:1], [9], tile=tile), together[:1]) > 5


def test_dtypes_agree(model: RestorationModel) -> None:
    degraded = images(1, 3, 40, 48)
    wanted = restore(model, degraded, [0])
    wide = restore(model, (degraded.int() * 257).to(torch.uint16), [0])
    floats = restore(model, degraded.float() / 255, [0])
    assert wide.dtype == torch.uint16 and floats.dtype == torch.float32
    assert (floats * 255 - wanted.float()).abs().max() < 0.51
    assert (wide.float() / 257 - wanted.float()).abs().max() < 0.51


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (64, 2)])
def test_images_smaller_than_the_network_takes_are_padded(
    model: RestorationModel, size: tuple[int, int]
) -> None:
    assert restore(model, images(2, 3, *size), [0, 0]).shape == (2, 3, *size)


def test_outer_autocast_has_no_effect(model: RestorationModel) -> None:
    degraded = images(1, 3, 40, 48)
    with torch.autocast("cpu", torch.bfloat16):
        found = restore(model, degraded, [0])
    assert torch.equal(found, restore(model, degraded, [0]))
    half = restore(model._replace(dtype=torch.bfloat16), degraded, [0])
    assert 0 < difference(half, found) < 10


def test_embeddings_are_used_and_can_be_left_out(model: RestorationModel) -> None:
    degraded = images(1, 3, 40, 48)
    embeddings = model.embed(degraded)
    wanted = restore(model, degraded, [0])
    assert torch.equal(restore(model, degraded, [0], embeddings=embeddings), wanted)
    without = Conditions(embeddings.content, None)
    assert not torch.equal(restore(model, degraded, [0], embeddings=without), wanted)


def test_network_is_called_at_the_timesteps_of_the_spacing(model: RestorationModel) -> None:
    visited, reported = [], []
    sampling = make_sampling("heun", eta=0, num_steps=9, timestep_spacing="log_snr")
    model = model._replace(sampling=sampling)
    model.denoiser.network.register_forward_pre_hook(lambda _, inputs: visited.append(inputs[2]))
    restore(model, images(1, 3, 40, 48), [0], num_steps=3, on_call=lambda *x: reported.append(x))
    first, second, third, last = TIMESTEP_SPACINGS["log_snr"](model.denoiser.schedule, 3)
    assert visited == [first, second, second, third, third] and last == 0
    assert len(reported) == sampling._replace(num_steps=3).network_calls == 5
    assert {(window, x_0.shape) for window, x_0 in reported} == {((0, 0, 40, 48), (1, 3, 40, 48))}


def test_output_that_is_not_finite_is_refused(model: RestorationModel) -> None:
    model.denoiser.network.head.bias.fill_(math.nan)  # type: ignore[operator,union-attr]
    with pytest.raises(ValueError, match="output is not finite"):
        restore(model, images(1, 3, 20, 20), [0])


def test_a_seed_is_needed_for_each_image(model: RestorationModel) -> None:
    with pytest.raises(ValueError, match="got 1 seeds for a batch of 2 images"):
        restore(model, images(2, 3, 40, 40), [0])

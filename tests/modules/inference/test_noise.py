"""Noise belongs to its place: windows agree, wherever they are cut; and it is normal."""

from __future__ import annotations

import pytest
import torch

from modules.inference.noise import noise_window, place_noise


def test_windows_agree_where_they_overlap() -> None:
    whole = noise_window(3, 1, 0, 0, (3, 200, 210))
    for top, left, height, width in [
        (0, 0, 64, 64),
        (63, 65, 2, 130),
        (130, 1, 70, 5),
        (199, 209, 1, 1),
    ]:
        part = noise_window(3, 1, top, left, (3, height, width))
        assert torch.equal(part, whole[:, top : top + height, left : left + width])


@pytest.mark.parametrize("other", [(4, 1, 0, 0), (3, 2, 0, 0), (3, 1, 64, 0), (3, 1, 0, 64)])
def test_seeds_draws_and_blocks_are_independent(other: tuple[int, int, int, int]) -> None:
    x = noise_window(3, 1, 0, 0, (3, 64, 64)).flatten()
    y = noise_window(*other, (3, 64, 64)).flatten()
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 0.04


def test_it_is_standard_normal() -> None:
    x = noise_window(0, 0, 10, 20, (3, 300, 300)).flatten().double()
    assert abs(x.mean()) < 0.008 and abs(x.std() - 1) < 0.006
    assert abs(x.pow(4).mean() - 3) < 0.05
    assert abs(float((x.abs() < 1).double().mean()) - 0.6827) < 0.004


def test_calls_count_the_draws() -> None:
    noise = place_noise([5], 70, 30)
    like = torch.zeros(1, 3, 20, 40, dtype=torch.float64)
    for draw in range(3):
        expected = noise_window(5, draw, 70, 30, (3, 20, 40))[None]
        made = noise(like)
        assert made.dtype == torch.float64 and torch.equal(made, expected.double())


def test_two_images_are_refused() -> None:
    with pytest.raises(ValueError, match="batch of 2"):
        place_noise([0], 0, 0)(torch.zeros(2, 3, 8, 8))

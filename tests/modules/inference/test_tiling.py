"""Tiles cover any image, blend to what they were cut from, and hold no more than a row of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from modules.inference.tiling import (
    ALIGN,
    SMALLEST,
    Window,
    blend_weights,
    count_tiles,
    spans,
    tiled,
)

SIZES = [(1, 1), (5, 300), (64, 64), (65, 64), (97, 130), (300, 2), (333, 257)]


def picture(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [64, 100, 128, 512])
def test_weights_sum_to_one_at_every_pixel_of_any_length(side: int) -> None:
    for length in [*range(1, 4 * side, 7), 30_000]:
        total = torch.zeros(length)
        along = spans(length, side)
        for (start, stop), weight in zip(along, blend_weights(along, side), strict=True):
            assert weight.min() >= 0
            total[start:stop] += weight
        assert (total - 1).abs().max() < 1e-6, length


@pytest.mark.parametrize("side", [64, 100, 128, 512])
def test_tiles_share_enough_keep_their_size_and_start_in_phase(side: int) -> None:
    for length in [*range(1, 4 * side, 7), 30_000]:
        along = spans(length, side)
        assert along[0].start == 0 and along[-1].stop == length
        assert all(span.start % ALIGN == 0 and span.stop - span.start <= side for span in along)
        assert all(a.stop - b.start >= side // 8 for a, b in itertools.pairwise(along))
        assert all(a.stop - a.start == side for a in along[:-1])


def test_weight_is_smooth_and_nothing_at_a_tiles_edge() -> None:
    along = spans(1000, 256)
    for weight in blend_weights(along, 256)[1:-1]:
        assert weight[:8].max() == 0 and weight[-8:].max() == 0 and weight.max() == 1
        assert weight.diff().abs().max() < 1.6 / (256 // 16)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bands_give_the_image_back(height: int, width: int) -> None:
    image = picture(height, width)
    seen: list[Window] = []

    def work(tile: Window) -> Tensor:
        seen.append(tile)
        top, left, h, w = tile
        return image[:, top : top + h, left : left + w].clone()

    bands = list(tiled(height, width, 64, work))
    assert [top for top, _ in bands] == [0, *itertools.accumulate(b.shape[1] for _, b in bands)][
        :-1
    ]
    assert torch.allclose(torch.cat([band for _, band in bands], dim=1), image, atol=1e-6)
    assert len(seen) == count_tiles(height, width, 64)


def test_one_tile_is_passed_on_to_the_bit() -> None:
    image = picture(60, 50)
    [(top, band)] = tiled(60, 50, SMALLEST, lambda tile: image)
    assert top == 0 and torch.equal(band, image)


def test_bands_come_as_soon_as_their_tiles_are_done() -> None:
    done: list[Window] = []

    def work(tile: Window) -> Tensor:
        done.append(tile)
        return torch.zeros(3, tile.height, tile.width)

    for top, band in tiled(1000, 130, 64, work):
        assert band.shape[1] <= 64
        assert max(tile.top for tile in done) == top


@pytest.mark.parametrize(("length", "side"), [(0, 64), (10, 63)])
def test_too_small_is_refused(length: int, side: int) -> None:
    with pytest.raises(ValueError, match=f"got {length} and {side}"):
        spans(length, side)

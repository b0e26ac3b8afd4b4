"""Fidelity metrics against the reference's figures and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from modules.metrics.fidelity import ImageScores, luma, psnr, quantise, score_pair, ssim
from tests.golden_vectors import GOLDEN, golden_json


def read(name: str) -> Tensor:
    return torch.from_numpy(np.array(Image.open(GOLDEN / "metrics" / name))).permute(2, 0, 1)


def noisy_pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (3, height, width), generator=generator)
    noise = torch.randint(-30, 31, clean.shape, generator=generator)
    return (clean + noise).clamp(0, 255).byte(), clean.byte()


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("pair", ["pair0", "pair1", "pair2"])
def test_scores_match_the_reference(pair: str, border: int) -> None:
    restored, clean = (read(f"{pair}_{kind}.png") for kind in ("sr", "gt"))
    found = score_pair(restored, clean, border)
    expected = ImageScores(**golden_json("metrics/metrics")[pair][f"crop{border}"])
    assert found.psnr == pytest.approx(expected.psnr, abs=1e-4)
    assert found.psnr_y == pytest.approx(expected.psnr_y, abs=1e-4)
    assert found.ssim == pytest.approx(expected.ssim, abs=1e-5)
    assert found.ssim_y == pytest.approx(expected.ssim_y, abs=1e-5)


def test_scores_agree_with_torchmetrics() -> None:
    x, y = (image.double()[None] for image in noisy_pair(37, 23))
    expected = peak_signal_noise_ratio(x, y, data_range=255.0).item()
    assert psnr(x, y) == pytest.approx(expected, abs=1e-5)  # it takes a logarithm in float32
    _, every_pixel = structural_similarity_index_measure(
        x, y, data_range=255.0, return_full_image=True
    )
    expected_planes = every_pixel[0, :, 5:-5, 5:-5].mean(dim=(1, 2))
    assert torch.allclose(ssim(x[0], y[0]), expected_planes, rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("size", [(19, 19), (24, 31), (37, 23), (128, 65)])
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_scores_agree_with_independent_libraries(
    grey: bool, size: tuple[int, int], border: int
) -> None:
    restored, clean = noisy_pair(*size)
    if grey:
        clean = clean[:1].expand(3, -1, -1)
    scores = score_pair(restored, clean, border)
    inside = tuple(slice(border, side - border) for side in size)
    pictures = [image.permute(1, 2, 0).numpy() for image in (restored, clean)]
    colour = [picture[inside].astype(float) for picture in pictures]
    plane = [rgb2ycbcr(picture)[..., 0][inside] for picture in pictures]
    for x, y, found_psnr, found_ssim in (
        (*colour, scores.psnr, scores.ssim),
        (*plane, scores.psnr_y, scores.ssim_y),
    ):
        pair = (torch.from_numpy(np.ascontiguousarray(image)) for image in (x, y))
        expected = peak_signal_noise_ratio(*pair, data_range=255.0).item()
        assert found_psnr == pytest.approx(expected, abs=1e-5)  # a logarithm in float32
        expected = structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
            channel_axis=2 if x.ndim == 3 else None,
        )  # fmt: skip
        assert found_ssim == pytest.approx(expected, abs=1e-12)


def test_rgb_is_the_mean_over_planes_and_luma_stands_apart() -> None:
    _, clean = noisy_pair(32, 32)
    restored = clean.clone()
    restored[0] = 255 - restored[0]
    scores = score_pair(restored, clean)
    red = clean[0, 4:-4, 4:-4].double()
    mse = ((255 - 2 * red) ** 2).mean().item()
    assert scores.psnr == pytest.approx(10 * math.log10(255**2 / (mse / 3)))
    assert scores.psnr_y == pytest.approx(10 * math.log10(255**2 / (mse * (65.481 / 255) ** 2)))
    expected = (ssim((255 - red)[None], red[None]).item() + 2) / 3
    assert scores.ssim == pytest.approx(expected)


def test_luma_of_the_corners() -> None:
    colours = {(0, 0, 0): 16, (255, 255, 255): 235, (255, 0, 0): 81.481, (0, 255, 0): 144.553}
    for colour, expected in colours.items():
        image = torch.tensor(colour, dtype=torch.float64).reshape(3, 1, 1)
        assert luma(image).item() == pytest.approx(expected)


def test_identical_images_score_infinite_and_one() -> None:
    _, clean = noisy_pair(20, 30)
    scores = score_pair(clean, clean.clone())
    assert (scores.psnr, scores.psnr_y) == (math.inf, math.inf)
    assert (scores.ssim, scores.ssim_y) == (pytest.approx(1), pytest.approx(1))


def test_what_lies_in_the_border_does_not_count() -> None:
    restored, clean = noisy_pair(24, 24)
    framed = restored.clone()
    framed[:, :4], framed[:, -4:], framed[..., :4], framed[..., -4:] = 0, 0, 255, 255
    assert score_pair(framed, clean) == score_pair(restored, clean)
    framed[:, 4, 4] ^= 128
    assert score_pair(framed, clean) != score_pair(restored, clean)


def test_inputs_are_left_alone() -> None:
    restored, clean = noisy_pair(24, 24)
    score_pair(restored, clean)
    assert all(map(torch.equal, (restored, clean), noisy_pair(24, 24)))


def test_the_smallest_image_is_a_window_and_two_borders() -> None:
    score_pair(*noisy_pair(19, 19))
    score_pair(*noisy_pair(11, 11), border=0)
    for size, border in (((18, 19), 4), ((19, 18), 4), ((11, 10), 0)):
        with pytest.raises(
            ValueError, match=f"border of {border}.*this one is {size[0]}x{size[1]}"
        ):
            score_pair(*noisy_pair(*size), border=border)
    with pytest.raises(ValueError, match="border of -1"):
        score_pair(*noisy_pair(19, 19), border=-1)


def test_pairs_that_do_not_match_are_refused() -> None:
    restored, clean = noisy_pair(20, 20)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 20, 19\) and \(3, 20, 20\)"):
        score_pair(restored[..., 1:], clean)
    with pytest.raises(ValueError, match=r"restored.*torch.float32 \(3, 20, 20\)"):
        score_pair(restored.float(), clean)
    with pytest.raises(ValueError, match=r"clean.*\(1, 3, 20, 20\)"):
        score_pair(restored, clean[None])
    with pytest.raises(ValueError, match=r"restored.*\(1, 20, 20\)"):
        score_pair(restored[:1], clean[:1])


def test_quantised_images_are_clamped_and_rounded() -> None:
    levels = torch.arange(256) / 255
    image = levels.reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    expected = torch.arange(256).reshape(16, 16).byte().expand(2, 3, -1, -1)
    assert torch.equal(quantise(image), expected)
    assert torch.equal(quantise(image + 0.499 / 255), expected)
    assert torch.equal(quantise(image - 0.499 / 255), expected)
    outside = torch.tensor([-0.01, 1.01, -math.inf, math.inf, -7.0, 300.0]).reshape(2, 3, 1, 1)
    assert quantise(outside).flatten().tolist() == [0, 255, 0, 255, 0, 255]
    halves = torch.tensor([0.5, 1.5, 2.5]).reshape(1, 3, 1, 1) / 255
    assert quantise(halves).flatten().tolist() == [0, 2, 2]
    coarse = torch.tensor([0.7744, 0.4177, 0.6924], dtype=torch.float16).reshape(1, 3, 1, 1)
    # Its own product with 255 would round to 198, 106, 176.
    assert quantise(coarse).flatten().tolist() == [197, 107, 177]


def test_nan_pixels_are_counted_and_named() -> None:
    images = torch.zeros(3, 3, 4, 5)
    images[1, :, 2, 2] = math.nan  # one pixel in all planes
    images[2, 0, :2, 0] = math.nan
    with pytest.raises(ValueError, match="1 in image 2 of 3, 2 in image 3 of 3; what made"):
        quantise(images)
    assert quantise(images[:1]).sum() == 0

"""PSNR and SSIM against the reference's figures and independent libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from datamodules.images import Pixels
from modules.metrics import METRICS, ImageMetric
from tests.golden_vectors import GOLDEN, golden_json

NAMES = {"psnr": "psnr_rgb", "ssim": "ssim_rgb", "psnr_y": "psnr_y", "ssim_y": "ssim_y"}
"""Names in the reference's figures, and here without their border."""
VARIANTS = ("rgb_border4", "y_border4", "rgb_plain", "y_plain")


def measure(name: str, restored: Pixels, clean: Pixels) -> float:
    metric = METRICS[name]
    assert isinstance(metric, ImageMetric)
    metric.check_size(restored)
    return metric.load(torch.device("cpu"))(restored, clean)


def noisy_pair(height: int, width: int) -> tuple[Pixels, Pixels]:
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (height, width, 3))
    noisy = clean + rng.integers(-30, 31, clean.shape)
    return noisy.clip(0, 255).astype(np.uint8), clean.astype(np.uint8)


@pytest.mark.parametrize(("crop", "suffix"), [("crop0", "plain"), ("crop4", "border4")])
@pytest.mark.parametrize("pair", ["pair0", "pair1", "pair2"])
def test_scores_match_the_reference(pair: str, crop: str, suffix: str) -> None:
    restored, clean = (
        np.array(Image.open(GOLDEN / "metrics" / f"{pair}_{kind}.png")) for kind in ("sr", "gt")
    )
    for key, expected in golden_json("metrics/metrics")[pair][crop].items():
        found = measure(f"{NAMES[key]}_{suffix}", restored, clean)
        assert found == pytest.approx(expected, abs=1e-4 if "psnr" in key else 1e-5), key


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("size", [(19, 19), (24, 31), (37, 23), (128, 65)])
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_scores_agree_with_independent_libraries(
    grey: bool, size: tuple[int, int], border: int
) -> None:
    restored, clean = noisy_pair(*size)
    if grey:
        clean = clean[..., :1].repeat(3, axis=2)
    inside = tuple(slice(border, side - border) for side in size)
    suffix = f"border{border}" if border else "plain"
    for plane in ("rgb", "y"):
        x, y = (
            (image if plane == "rgb" else rgb2ycbcr(image)[..., 0])[inside].astype(float)
            for image in (restored, clean)
        )
        expected = peak_signal_noise_ratio(y, x, data_range=255)
        found = measure(f"psnr_{plane}_{suffix}", restored, clean)
        assert found == pytest.approx(expected, abs=1e-12)
        expected = structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
            channel_axis=2 if x.ndim == 3 else None,
        )  # fmt: skip
        found = measure(f"ssim_{plane}_{suffix}", restored, clean)
        assert found == pytest.approx(expected, abs=1e-12)


def test_luma_of_a_plane_follows_its_weight() -> None:
    _, clean = noisy_pair(32, 32)
    restored = clean.copy()
    restored[..., 0] = 255 - restored[..., 0]
    red = clean[4:-4, 4:-4, 0].astype(float)
    mse = ((255 - 2 * red) ** 2).mean()
    rgb, luma = (measure(f"psnr_{plane}_border4", restored, clean) for plane in ("rgb", "y"))
    assert rgb == pytest.approx(10 * math.log10(255**2 / (mse / 3)))
    assert luma == pytest.approx(10 * math.log10(255**2 / (mse * (65.481 / 255) ** 2)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_identical_images_score_infinite_and_one(variant: str) -> None:
    _, clean = noisy_pair(20, 30)
    assert measure(f"psnr_{variant}", clean, clean.copy()) == math.inf
    assert measure(f"ssim_{variant}", clean, clean.copy()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["psnr_rgb_border4", "ssim_y_border4"])
def test_what_lies_in_the_border_does_not_count(name: str) -> None:
    restored, clean = noisy_pair(24, 24)
    framed = restored.copy()
    framed[:4], framed[-4:], framed[:, :4], framed[:, -4:] = 0, 0, 255, 255
    assert measure(name, framed, clean) == measure(name, restored, clean)
    framed[4, 4] ^= 128
    assert measure(name, framed, clean) != measure(name, restored, clean)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("psnr_rgb_plain", 1),
        ("psnr_rgb_border4", 9),
        ("ssim_rgb_plain", 11),
        ("ssim_y_border4", 19),
    ],
)
def test_each_metric_has_its_own_least_size(name: str, least: int) -> None:
    assert math.isfinite(measure(name, *noisy_pair(least, least + 1)))
    if least > 1:
        size = f"at least {least}x{least} pixels; this one is {least}x{least - 1}"
        with pytest.raises(ValueError, match=size):
            measure(name, *noisy_pair(least, least - 1))

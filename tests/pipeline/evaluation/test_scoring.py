"""Scores of one image in every convention, FID by task, and what is missing with its reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from datamodules.images import read_image
from modules.metrics.fidelity import score_pair
from pipeline.evaluation.inception import fid_of
from pipeline.evaluation.methods import Input, Outputs
from pipeline.evaluation.perceptual import Perceptual, load_perceptual
from pipeline.evaluation.report import Training, _is_short, _trainings
from pipeline.evaluation.samples import key_of
from pipeline.evaluation.scoring import score
from pipeline.evaluation.sets import read_sets
from tests.evaluating import WORDS, save_outputs, save_pairs

NONE = Perceptual(None, None, None, {})


class Distance(nn.Module):
    """In place of LPIPS: the mean difference."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3)) * self.weight


class Brightness:
    """In place of a score without a reference image; needs 20 pixels a side."""

    name = "niqe"

    def __call__(self, image: Tensor) -> float:
        if min(image.shape[1:]) < 20:
            raise ValueError("needs 20 pixels a side")
        return float(image.double().mean())


def fake(**changes: Any) -> Perceptual:
    return NONE._replace(**({"lpips": Distance(), "no_reference": Brightness()} | changes))


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, clean = torch.randint(0, 256, (2, 3, 40, 48), generator=generator).byte()
    return image, clean


def test_both_conventions_are_scored(pair: tuple[Tensor, Tensor]) -> None:
    values, missing = score(*pair, NONE)
    cut, plain = score_pair(*pair, 4), score_pair(*pair, 0)
    assert values == {
        "psnr_rgb_border4": cut.psnr,
        "ssim_rgb_border4": cut.ssim,
        "psnr_y_border4": cut.psnr_y,
        "ssim_y_border4": cut.ssim_y,
        "psnr_rgb_plain": plain.psnr,
        "ssim_rgb_plain": plain.ssim,
        "psnr_y_plain": plain.psnr_y,
        "ssim_y_plain": plain.ssim_y,
    }
    assert len(set(values.values())) == 8
    assert missing == {}


def test_perceptual_scores_are_of_the_whole_image(pair: tuple[Tensor, Tensor]) -> None:
    image, clean = pair
    values, _ = score(image, clean, fake())
    assert values["niqe"] == pytest.approx(float(image.double().mean()))
    difference = (image.double() - clean.double()).abs().mean() / 255
    assert values["lpips_alex"] == pytest.approx(float(difference), rel=1e-5)


def test_without_a_clean_image_only_what_needs_none_is_scored(pair: tuple[Tensor, Tensor]) -> None:
    values, missing = score(pair[0], None, fake())
    assert list(values) == ["niqe"]
    assert missing == {}


def test_equal_images_are_infinitely_near(pair: tuple[Tensor, Tensor]) -> None:
    values, _ = score(pair[1], pair[1], NONE)
    assert values["psnr_rgb_border4"] == math.inf
    assert values["ssim_y_plain"] == pytest.approx(1)


def test_what_an_image_is_too_small_for_is_missing_with_the_reason() -> None:
    image = torch.zeros(3, 15, 15, dtype=torch.uint8)
    values, missing = score(image, image, fake())
    assert set(values) == {f"{m}_{p}_plain" for m in ("psnr", "ssim") for p in ("rgb", "y")}
    assert "at least 19x19" in missing["psnr_rgb_border4"]
    assert missing["lpips_alex"] == "LPIPS needs 31 pixels a side; this image is 15x15"
    assert missing["niqe"] == "needs 20 pixels a side"


def test_other_size_is_no_missing_score_but_an_error(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        score(pair[0][:, :-1], pair[1], NONE)


def test_missing_weights_are_told_and_nothing_takes_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = load_perceptual(torch.device("cpu"), with_fid=True)
    assert found.lpips is None and found.fid is None
    assert "alexnet" in found.missing["LPIPS"] and "fetch" in found.missing["LPIPS"]
    assert "inception" in found.missing["FID"]
    assert "FID" not in load_perceptual(torch.device("cpu"), with_fid=False).missing


class Features(nn.Module):
    """Three numbers of an image, in place of Inception's."""

    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3)) / 255


def features(image: np.ndarray) -> np.ndarray:
    return image.astype(float).mean(axis=(0, 1)) / 255


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Of two normal distributions, by the eigenvalues of the covariances' product."""
    (m, c), (n, d) = ((z.mean(axis=0), np.cov(z, rowvar=False)) for z in (x, y))
    roots = np.sqrt(np.linalg.eigvals(c @ d).astype(complex)).real.sum()
    return float(((m - n) ** 2).sum() + np.trace(c) + np.trace(d) - 2 * roots)


def test_fid_is_of_all_images_of_a_task_and_of_each_dataset(tmp_path: Path) -> None:
    for i, name in enumerate(("one", "two")):
        save_pairs(tmp_path / name, [f"hazy/{i}{k}" for k in range(5)])
    save_pairs(tmp_path / "two", ["rainy/x"])
    samples = read_sets({"": tmp_path / "one", "2": tmp_path / "two"}, WORDS)
    names = [key_of(sample) for sample in samples]
    out = save_outputs(tmp_path / "out", names)
    methods = {"input": Input(), "X": Outputs({name: out / f"{name}.png" for name in names})}
    metric = FrechetInceptionDistance(feature=Features(), input_img_size=(3, 40, 48))
    metric = metric.set_dtype(torch.float64)
    found, reasons = fid_of(metric, samples, methods, [])
    places = {(task, dataset) for _, task, dataset in found}
    assert places == {("hazy", ""), ("hazy", "one"), ("hazy", "2")}
    for (method, _, dataset), value in found.items():
        group = [s for s in samples if s.task == "hazy" and dataset in ("", s.dataset)]
        clean = np.array([features(s.load().clean) for s in group])  # type: ignore[arg-type]
        path = methods[method].path
        images = [s.load().degraded if path(s) is None else read_image(path(s)) for s in group]
        expected = distance(np.array([features(image) for image in images]), clean)
        assert value == pytest.approx(expected, rel=1e-6)
    assert list(reasons) == ["FID of rainy"]
    assert "a single image" in reasons["FID of rainy"]
    faulty = {("input", names[0]), ("X", names[0]), ("X", names[1])}
    found, _ = fid_of(metric, samples, methods, faulty)
    images = [read_image(methods["X"].path(s)) for s in samples[2:10]]
    clean = [s.load().clean for s in samples[1:10]]
    expected = distance(*(np.array([features(i) for i in group]) for group in (images, clean)))  # type: ignore[arg-type]
    assert found["X", "hazy", ""] == pytest.approx(expected, rel=1e-6)


def test_fid_leaves_out_images_without_a_clean_one(tmp_path: Path) -> None:
    samples = read_sets({"": save_pairs(tmp_path, ["hazy/a", "hazy/b"], clean=False)}, WORDS)
    metric = FrechetInceptionDistance(feature=Features(), input_img_size=(3, 40, 48))
    assert fid_of(metric, samples, {"input": Input()}, []) == ({}, {})


@pytest.mark.parametrize(
    ("starts", "minutes", "weights"), [(1, 3, None), (2, None, None), (1, 3, "released.pth")]
)
def test_trainings_are_those_of_the_records(
    starts: int, minutes: float | None, weights: str | None
) -> None:
    times = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:03:00+00:00"}
    settings = {"max_steps": 1234, "init_from": weights}
    record = times | {"stage": "restorer", "starts": starts, "config": {"restorer": settings}}
    found = _trainings([record, {}])
    assert found == [Training("restorer", 1234, minutes, weights is None)]
    assert _is_short(found[0]) == (starts == 1 and weights is None)

"""Scores of one image in every convention, FID by task, and what is missing with its reason."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from datamodules.images import Pixels, read_image
from modules.metrics import METRICS, ImageMetric, Score, SetMetric
from modules.metrics.fid import InceptionDistance
from pipeline.evaluation.data import key_of, read_sets
from pipeline.evaluation.methods import Input, Outputs
from pipeline.evaluation.report import Training, trainings
from pipeline.evaluation.scoring import load_scorers, score, score_sets, validation_metrics
from tests.evaluating import WORDS, save_outputs, save_pairs

CPU = torch.device("cpu")
FID = METRICS["fid"]
assert isinstance(FID, SetMetric)
FIDELITY = {
    f"{m}_{p}_{c}" for m in ("psnr", "ssim") for p in ("rgb", "y") for c in ("border4", "plain")
}


@pytest.fixture
def scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[ImageMetric, Score]:
    """What needs no weights, and a brightness in place of NIQE."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    niqe = METRICS["niqe"]
    assert isinstance(niqe, ImageMetric)
    bright = replace(niqe, min_size=(20, 20))
    return load_scorers(CPU, with_sets=False).of_images | {bright: lambda x, clean: float(x.mean())}


@pytest.fixture
def pair() -> tuple[Pixels, Pixels]:
    image, clean = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3)).astype(np.uint8)
    return image, clean


def test_every_convention_is_scored(
    pair: tuple[Pixels, Pixels], scorers: dict[ImageMetric, Score]
) -> None:
    values, missing = score(*pair, scorers)
    assert set(values) == FIDELITY | {"niqe"}
    assert len(set(values.values())) == 9
    assert missing == {}


def test_without_a_clean_image_only_what_needs_none_is_scored(
    pair: tuple[Pixels, Pixels], scorers: dict[ImageMetric, Score]
) -> None:
    assert score(pair[0], None, scorers) == ({"niqe": pytest.approx(pair[0].mean())}, {})


def test_what_an_image_is_too_small_for_is_missing_with_the_reason(
    scorers: dict[ImageMetric, Score],
) -> None:
    image = np.zeros((15, 15, 3), np.uint8)
    values, missing = score(image, image, scorers)
    assert set(values) == FIDELITY - {"ssim_rgb_border4", "ssim_y_border4"}
    assert values["psnr_rgb_border4"] == math.inf
    assert "at least 19x19 pixels; this one is 15x15" in missing["ssim_rgb_border4"]
    assert "at least 20x20" in missing["niqe"]


def test_other_size_is_no_missing_score_but_an_error(pair: tuple[Pixels, Pixels]) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        score(pair[0][:-1], pair[1], {})


def test_missing_weights_are_told_and_nothing_takes_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = load_scorers(CPU, with_sets=True)
    assert {m.name for m in found.of_images} == FIDELITY and not found.of_sets
    assert "alexnet" in found.missing["LPIPS"] and "fetch" in found.missing["LPIPS"]
    assert "inception" in found.missing["FID"]
    assert "NIQE" in found.missing
    assert "FID" not in load_scorers(CPU, with_sets=False).missing
    with caplog.at_level("INFO"):
        assert set(validation_metrics(CPU)) == {"psnr", "ssim"}
    [line] = [record.message for record in caplog.records if "not measured" in record.message]
    assert line.startswith("LPIPS is not measured") and "fetch" in line


def test_validation_measures_as_the_evaluation(
    pair: tuple[Pixels, Pixels], scorers: dict[ImageMetric, Score]
) -> None:
    expected, _ = score(*pair, scorers)
    images = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in pair]
    for name, measure in validation_metrics(CPU).items():
        [found] = measure(*images).tolist()
        assert found == pytest.approx(expected[f"{name}_rgb_border4"], rel=1e-6)
    small = [image[..., :15, :15] for image in images]
    assert validation_metrics(CPU)["ssim"](*small).isnan().all()


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
    scorers = {FID: InceptionDistance(metric)}
    figures, reasons = score_sets(scorers, samples, methods, [])
    found = figures["fid"]
    places = {(task, dataset) for _, task, dataset in found}
    assert places == {("hazy", ""), ("hazy", "one"), ("hazy", "2")}
    for (method, _, dataset), (value, count) in found.items():
        group = [s for s in samples if s.task == "hazy" and dataset in ("", s.dataset)]
        clean = np.array([features(s.load().clean) for s in group])  # type: ignore[arg-type]
        path = methods[method].path
        images = [s.load().degraded if path(s) is None else read_image(path(s)) for s in group]
        expected = distance(np.array([features(image) for image in images]), clean)
        assert value == pytest.approx(expected, rel=1e-6)
        assert count == len(group)
    assert list(reasons) == ["FID of rainy"]
    assert "a single image" in reasons["FID of rainy"]
    faulty = {("input", names[0]), ("X", names[0]), ("X", names[1])}
    figures, _ = score_sets(scorers, samples, methods, faulty)
    images = [read_image(methods["X"].path(s)) for s in samples[2:10]]
    clean = [s.load().clean for s in samples[1:10]]
    expected = distance(*(np.array([features(i) for i in group]) for group in (images, clean)))  # type: ignore[arg-type]
    assert figures["fid"]["X", "hazy", ""] == (pytest.approx(expected, rel=1e-6), 8)


def test_fid_leaves_out_images_without_a_clean_one(tmp_path: Path) -> None:
    samples = read_sets({"": save_pairs(tmp_path, ["hazy/a", "hazy/b"], clean=False)}, WORDS)
    metric = FrechetInceptionDistance(feature=Features(), input_img_size=(3, 40, 48))
    scorers = {FID: InceptionDistance(metric)}
    assert score_sets(scorers, samples, {"input": Input()}, []) == ({"fid": {}}, {})


@pytest.mark.parametrize(
    ("starts", "minutes", "weights"), [(1, 3, None), (2, None, None), (1, 3, "released.pth")]
)
def test_trainings_are_those_of_the_records(
    starts: int, minutes: float | None, weights: str | None
) -> None:
    times = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:03:00+00:00"}
    settings = {"max_steps": 1234, "init_from": weights}
    record = times | {"stage": "restorer", "starts": starts, "config": {"restorer": settings}}
    found = trainings([record, {}])
    assert found == [Training("restorer", 1234, minutes, weights is None)]
    assert found[0].is_short == (starts == 1 and weights is None)

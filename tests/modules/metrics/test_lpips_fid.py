"""Perceptual metrics: with weight files of random networks, and without any."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    FeatureExtractorInceptionV3,
)
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchvision.models import alexnet

from modules.metrics import METRICS, Unavailable
from modules.metrics.fid import load as load_fid
from tests.golden_vectors import relative_error

CPU = torch.device("cpu")
ALEXNET, INCEPTION = "alexnet-owt-7be5be79.pth", "weights-inception-2015-12-05-6726825d.pth"

metrics = pytest.mark.parametrize(
    ("metric", "file"), [("lpips_alex", ALEXNET), ("fid", INCEPTION)], ids=["lpips", "fid"]
)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weight folder, and no way out to fetch anything."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def random_alexnet(checkpoints: Path) -> None:
    torch.manual_seed(0)
    weights = {
        # What LPIPS does not use may take no space.
        name: value if name.startswith("features") else torch.zeros(()).expand(value.shape)
        for name, value in alexnet().state_dict().items()
    }
    torch.save(weights, checkpoints / ALEXNET)


class RandomInception(FeatureExtractorInceptionV3):
    """The extractor as initialised: it ignores the weights that its constructor insists on."""

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        pass


@pytest.fixture
def random_inception(checkpoints: Path) -> RandomInception:
    torch.manual_seed(0)
    torch.save({}, checkpoints / "none.pth")
    path = str(checkpoints / "none.pth")
    network = RandomInception("random", ["2048"], feature_extractor_weights_path=path)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # as initialised, its features are all but zero
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), checkpoints / INCEPTION)
    return network


@metrics
def test_a_missing_file_is_named_with_the_remedy(metric: str, file: str, checkpoints: Path) -> None:
    with pytest.raises(Unavailable) as raised:
        METRICS[metric].load(CPU)  # type: ignore[attr-defined]
    message = str(raised.value)
    assert str(checkpoints / file) in message
    weights = METRICS[metric].weights
    assert weights is not None and weights.url.endswith(f"/{file}")
    assert f"fetch {weights.url}" in message
    assert not list(checkpoints.iterdir())


@metrics
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut short"])
def test_a_broken_file_is_named_with_the_remedy(
    metric: str, file: str, content: bytes, checkpoints: Path
) -> None:
    (checkpoints / file).write_bytes(content)
    with pytest.raises(Unavailable, match=f"cannot read.*{file}.*remove it, fetch"):
        METRICS[metric].load(CPU)  # type: ignore[attr-defined]


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@metrics
@pytest.mark.parametrize(
    "save", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap, 2))]
)
def test_a_file_that_holds_code_is_not_executed(
    metric: str,
    file: str,
    save: Callable[[Trap, Path], object],
    checkpoints: Path,
) -> None:
    trapped = checkpoints / "trapped"
    save(Trap(trapped), checkpoints / file)
    with pytest.raises(Unavailable, match="as plain tensors"):
        METRICS[metric].load(CPU)  # type: ignore[attr-defined]
    assert not trapped.exists()


@pytest.mark.usefixtures("random_alexnet")
def test_lpips_measures_a_distance_of_8_bit_images() -> None:
    distance = METRICS["lpips_alex"].load(CPU)  # type: ignore[attr-defined]
    x, y = np.random.default_rng(0).integers(0, 256, (2, 40, 64, 3)).astype(np.uint8)
    assert distance(x, x) == 0
    assert distance(x, y) == distance(x, y) > 0  # no dropout
    assert distance(x, y) == pytest.approx(distance(y, x))
    nearer = (x + 0.1 * (y.astype(float) - x)).astype(np.uint8)
    assert distance(x, nearer) < distance(x, y)
    a, b = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in (x, y))
    expected = learned_perceptual_image_patch_similarity(a, b, net_type="alex", normalize=True)
    assert distance(x, y) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.usefixtures("random_alexnet")
def test_lpips_takes_images_from_its_least_size_on() -> None:
    metric = METRICS["lpips_alex"]
    image = np.zeros((31, 31, 3), np.uint8)
    metric.check_size(image)
    assert metric.load(CPU)(image, image) == 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="LPIPS needs an image of at least 31x31"):
        metric.check_size(image[1:])


def test_fid_takes_its_features_from_the_file(
    random_inception: RandomInception, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = torch.load, {}

    def watch(path: object, **options: object) -> object:
        loaded[str(path)] = options["weights_only"]
        return load(path, **options)

    monkeypatch.setattr(torch, "load", watch)
    metric = load_fid(CPU).metric
    assert loaded.pop(str(checkpoints / INCEPTION)) is True
    assert list(loaded.values()) == [False]  # torch-fidelity's own, of the copy
    generator = torch.Generator().manual_seed(0)
    clean, restored = torch.randint(0, 256, (2, 1, 3, 320, 400), generator=generator).byte()
    metric.update(clean, real=True)
    metric.update(restored, real=False)
    # torch-fidelity resizes as the published figures were made.
    for features, images in (
        (metric.real_features_sum, clean),
        (metric.fake_features_sum, restored),
    ):
        (expected,) = random_inception(images)
        assert relative_error(features, expected[0]) < 1e-6


def pictures(count: int, seed: int) -> Tensor:
    """Random smooth ones, each of another contrast, so that features spread."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 5, 6, generator=generator) ** torch.linspace(
        0.3, 3, count
    ).reshape(-1, 1, 1, 1)
    large = nn.functional.interpolate(small, (40, 48), mode="bicubic")
    return (large.clamp(0, 1) * 255).byte()


STATES = ("features_sum", "features_cov_sum", "features_num_samples")


def test_fid_is_that_of_an_independent_computation(random_inception: RandomInception) -> None:
    metric = load_fid(CPU).metric
    sets = {"real": pictures(6, 0), "fake": pictures(5, 1)}
    for name, images in sets.items():
        metric.update(images, real=name == "real")
        # The root of a product of all 2048 features' covariances takes a minute.
        for state in STATES[:2]:
            value = getattr(metric, f"{name}_{state}")
            setattr(metric, f"{name}_{state}", value[(slice(3),) * value.ndim])
    features = [random_inception(images)[0][:, :3].double().numpy() for images in sets.values()]
    (mean, other), (spread, of_other) = (
        [measure(x) for x in features]
        for measure in (lambda x: x.mean(axis=0), lambda x: np.cov(x, rowvar=False))
    )
    root = sqrtm(spread @ of_other)
    expected = ((mean - other) ** 2).sum() + np.trace(spread + of_other - 2 * root).real
    assert np.trace(root).real > 0.1 * expected  # so that it counts
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5, abs=0)

"""NIQE: against figures of another implementation, and without its parameters."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from datamodules.images import Pixels
from modules.metrics import METRICS, Unavailable
from modules.metrics.niqe import GREY, WEIGHTS, block_features, load, niqe
from tests.golden_vectors import golden_json

FILE = "niqe_pris_params.npz"
MEAN = np.linspace(0.1, 2, 36)
COVARIANCE = np.diag(np.linspace(0.02, 0.5, 36)) + 0.01
"""Parameters of no photographs; the golden figures are of the same."""


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def save(folder: Path, **changes: object) -> None:
    """A file as the published one is."""
    arrays = {"mu_pris_param": MEAN[None], "cov_pris_param": COVARIANCE}
    np.savez(folder / FILE, **(arrays | {"gaussian_window": np.ones((7, 7))} | changes))


def picture(name: str) -> Pixels:
    image: Pixels = getattr(skimage.data, name)()
    return image


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_score_and_features_are_those_of_another_implementation(
    name: str, checkpoints: Path
) -> None:
    save(checkpoints)
    expected = golden_json("niqe/niqe")[name]
    grey = np.rint(np.tensordot(GREY, picture(name).transpose(2, 0, 1), axes=1))
    features = block_features(grey)
    assert len(features) == (grey.shape[0] // 96) * (grey.shape[1] // 96)
    np.testing.assert_allclose(features.mean(axis=0), expected["features"], rtol=1e-9)
    assert load()(picture(name), None) == pytest.approx(expected["niqe"], rel=1e-9)


def test_photographs_score_better_the_less_they_are_damaged() -> None:
    """Against the blocks of another photograph, which is no set of parameters to publish."""
    other = block_features(skimage.data.camera().astype(float))
    parameters = other.mean(axis=0), np.cov(other, rowvar=False)
    clean, rng = picture("coffee"), np.random.default_rng(0)
    noisy = (clean + sigma * rng.normal(size=clean.shape) for sigma in (0, 15, 50))
    scores = [niqe(image.clip(0, 255).astype(np.uint8), *parameters) for image in noisy]
    assert scores == sorted(scores)
    assert scores[2] > 2 * scores[0]


def test_what_no_whole_block_covers_does_not_count() -> None:
    image = noise(96, 192)
    wider = np.concatenate([image, noise(96, 50)], axis=1)
    assert niqe(wider, MEAN, COVARIANCE) == niqe(image, MEAN, COVARIANCE)


def test_flat_blocks_do_not_count() -> None:
    grey = np.full((96, 288), 255.0)
    grey[:, :192] = noise(96, 192)[..., 0]
    textured = np.isfinite(block_features(grey)).all(axis=1)
    assert textured.tolist() == [True, True, False]
    flat = grey.astype(np.uint8)[..., None].repeat(3, axis=2)
    assert 0 < niqe(flat, MEAN, COVARIANCE) < 100
    with pytest.raises(ValueError, match="not flat; of the 2 in this image 1 are not"):
        niqe(flat[:, 96:], MEAN, COVARIANCE)
    with pytest.raises(ValueError, match="of the 4 in this image 0 are not"):
        niqe(np.full((200, 200, 3), 77, np.uint8), MEAN, COVARIANCE)


def test_rounding_errors_of_flat_parts_do_not_count() -> None:
    grey = np.full((96, 192), 100.0)
    grey[::9, 5::12] = 140  # most of the windows between are flat
    # Brightness changes nothing but how sums are rounded.
    np.testing.assert_allclose(block_features(grey + 37), block_features(grey), rtol=1e-9)


def test_the_smallest_image_is_two_blocks() -> None:
    for size in ((96, 192), (192, 96)):
        METRICS["niqe"].check_size(noise(*size))
        assert niqe(noise(*size), MEAN, COVARIANCE) > 0
    for height, width in ((95, 500), (191, 191), (8, 8)):
        with pytest.raises(
            ValueError, match=f"at least 96x192 pixels; this one is {height}x{width}"
        ):
            METRICS["niqe"].check_size(noise(height, width))


def test_a_missing_file_is_named_with_the_remedy(checkpoints: Path) -> None:
    with pytest.raises(Unavailable, match="NIQE needs the weight file") as raised:
        load()
    assert str(checkpoints / FILE) in str(raised.value)
    assert f"fetch {WEIGHTS.url} and put it there" in str(raised.value)
    assert not list(checkpoints.iterdir())


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut short"])
def test_a_broken_file_is_named_with_the_remedy(content: bytes, checkpoints: Path) -> None:
    (checkpoints / FILE).write_bytes(content)
    with pytest.raises(Unavailable, match=f"cannot read.*{FILE}.*remove it, fetch"):
        load()


@pytest.mark.parametrize(
    "changes", [{"mu_pris_param": MEAN[:-1]}, {"cov_pris_param": MEAN}, {"mu_pris_param": "text"}]
)
def test_a_file_of_something_else_is_refused(changes: dict[str, object], checkpoints: Path) -> None:
    save(checkpoints, **changes)
    with pytest.raises(Unavailable, match="as arrays of its parameters"):
        load()


def test_a_file_without_the_parameters_is_refused(checkpoints: Path) -> None:
    np.savez(checkpoints / FILE, pop_mu=MEAN, pop_cov=COVARIANCE)
    with pytest.raises(Unavailable, match="as arrays of its parameters"):
        load()


class Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_a_file_that_holds_code_is_not_executed(checkpoints: Path) -> None:
    trap = Trap(checkpoints / "trapped")
    for write in (
        lambda: save(checkpoints, mu_pris_param=np.array(trap, dtype=object)),
        lambda: (checkpoints / FILE).write_bytes(pickle.dumps(trap)),
    ):
        write()
        with pytest.raises(Unavailable, match="as arrays of its parameters"):
            load()
        assert not (checkpoints / "trapped").exists()

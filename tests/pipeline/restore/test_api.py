"""`Restorer`: tiled as whole, the same from any list, kinds that come back, and what it refuses."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.restore.api import Progress, Restorer, deviation
from tests.conftest import photograph
from tests.restoring import (
    SAMPLER,
    WORDS,
    gradient,
    tiny_controller,
    tiny_denoiser,
    tiny_restorer,
)


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return tiny_restorer()


def pixels(restorer: Restorer, image: Any, **options: Any) -> np.ndarray:
    return np.asarray(restorer.restore_pixels(image, **options).image)


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.square(x.astype(float) - y).mean())


def test_choosing_a_degradation_that_has_no_effect_is_refused() -> None:
    denoiser = tiny_denoiser(degradation_prompt=False)
    restorer = Restorer(tiny_controller(), denoiser, SAMPLER, device="cpu", precision="float32")
    assert restorer(photograph(40, 48), degradation="auto").image.shape == (40, 48, 3)
    with pytest.raises(ValueError, match="'rainy' would change nothing"):
        restorer(photograph(40, 48), degradation="rainy")


def test_result_tells_how_it_was_made(restorer: Restorer) -> None:
    found = restorer(photograph(40, 48))
    assert restorer.words == WORDS and restorer.T == 100 and restorer.steps == 2
    assert set(found.degradation) == set(WORDS)
    assert sum(found.degradation.values()) == pytest.approx(1)
    assert list(found.degradation.values()) == sorted(found.degradation.values(), reverse=True)
    assert found.prompt == {"auto": 1.0} and found.uncertainty is None
    assert (found.tiles, found.calls) == (1, 2) and found.seconds > 0


@pytest.mark.parametrize("size", [(150, 210), (64, 300), (97, 65)])
def test_tiled_is_as_good_as_whole(restorer: Restorer, size: tuple[int, int]) -> None:
    clean = photograph(*size).astype(float)
    rng = np.random.default_rng(0)
    noisy = np.rint(clean + rng.normal(0, 20, clean.shape)).clip(0, 255).astype(np.uint8)
    whole = pixels(restorer, noisy, tile=None)
    found = restorer.restore_pixels(noisy, tile=64)
    tiled = np.asarray(found.image)
    assert found.tiles > 1
    assert psnr(whole, noisy) < 40  # it does something
    assert abs(psnr(tiled, clean) - psnr(whole, clean)) < 0.1


def test_gradient_has_no_seams(restorer: Restorer) -> None:
    smooth = gradient(160, 224).astype(np.float32) / 255
    whole, tiled = (pixels(restorer, smooth, tile=tile).mean(2) for tile in (None, 64))
    for axis, length in ((0, 160), (1, 224)):
        steps = np.abs(np.diff(tiled - whole, axis=axis)).mean(axis=1 - axis)
        usual = np.abs(np.diff(whole, axis=axis)).mean(axis=1 - axis)
        assert len(steps) == length - 1
        assert steps.max() < 0.2 * usual.min()


def test_same_seed_same_result_and_another_seed_another(restorer: Restorer) -> None:
    image = photograph(40, 48)
    first = pixels(restorer, image, seed=3)
    assert np.array_equal(first, pixels(restorer, image, seed=3))
    assert not np.array_equal(first, pixels(restorer, image, seed=4))


def test_result_does_not_depend_on_the_list(restorer: Restorer) -> None:
    images = [photograph(40, 48, seed) for seed in range(3)]
    together = restorer(images, seed=1)
    for image, found in zip(images, together, strict=True):
        assert np.array_equal(np.asarray(found.image), pixels(restorer, image, seed=1))
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    for tensor, found in zip(batch, restorer(batch, seed=1), strict=True):
        assert torch.equal(found.image, restorer(tensor, seed=1).image)


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 2), (64, 64)])
def test_any_size_is_restored(restorer: Restorer, size: tuple[int, int]) -> None:
    for tile in (None, 64):
        assert pixels(restorer, photograph(*size), tile=tile).shape == (*size, 3)


def test_kind_that_came_in_comes_back(restorer: Restorer, tmp_path: Path) -> None:
    image = photograph(40, 48)
    Image.fromarray(image).save(tmp_path / "a b.png")
    wanted = pixels(restorer, image)
    assert np.array_equal(np.asarray(restorer(tmp_path / "a b.png").image), wanted)
    assert np.array_equal(np.asarray(restorer(str(tmp_path / "a b.png")).image), wanted)
    assert np.array_equal(np.asarray(restorer(Image.fromarray(image)).image), wanted)
    for dtype, white in ((np.uint16, 65535), (np.float32, 1), (np.float64, 1)):
        scaled = (image * (white / 255)).astype(dtype)
        found = np.asarray(restorer(scaled).image)
        assert found.dtype == dtype and np.abs(found / white * 255 - wanted).max() < 1.1
    tensor = torch.from_numpy(image).permute(2, 0, 1).half() / 255
    found = restorer(tensor).image
    assert found.dtype == torch.float16 and found.shape == tensor.shape
    assert np.abs(found.permute(1, 2, 0).float().numpy() * 255 - wanted).max() < 2


def test_grey_and_transparent_images_stay_so(restorer: Restorer) -> None:
    image = photograph(40, 48)
    grey = image[..., 0]
    wanted = pixels(restorer, np.repeat(grey[..., None], 3, axis=2))
    for given in (grey, grey.astype(np.uint16) * 257, Image.fromarray(grey)):
        found = np.asarray(restorer(given).image)
        assert found.dtype == np.asarray(given).dtype and found.shape == (40, 48)
        luma = wanted.astype(float) @ [0.299, 0.587, 0.114]
        assert np.abs(found / (257 if found.dtype == np.uint16 else 1) - luma).max() < 1.1
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.asarray(restorer(wide).image).dtype == np.uint16
    alpha = np.arange(40 * 48, dtype=np.uint8).reshape(40, 48)
    found = np.asarray(restorer(Image.fromarray(np.dstack([image, alpha]))).image)
    assert np.array_equal(found[..., 3], alpha)
    assert np.array_equal(found[..., :3], pixels(restorer, image))


def test_files_come_back_as_eight_bit_images_with_their_alpha(
    restorer: Restorer, tmp_path: Path
) -> None:
    image = photograph(40, 48)
    alpha = np.arange(40 * 48, dtype=np.uint8).reshape(40, 48)
    wanted = np.dstack([pixels(restorer, image), alpha])
    narrow, wide, grey = (tmp_path / name for name in ("narrow.png", "wide.png", "grey.tif"))
    Image.fromarray(np.dstack([image, alpha])).save(narrow)
    cv2.imwrite(str(wide), np.dstack([image[..., ::-1], alpha]).astype(np.uint16) * 257)
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(grey)
    assert np.array_equal(np.asarray(restorer(narrow).image), wanted)
    found = np.asarray(restorer(wide).image)
    assert np.array_equal(found[..., 3], alpha)
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert restorer(grey).image.mode == "L"


def test_strength_leads_from_the_image_to_its_restoration(restorer: Restorer) -> None:
    image = photograph(90, 100).astype(np.float32) / 255
    full = pixels(restorer, image, tile=64)
    assert np.allclose(pixels(restorer, image, tile=64, strength=0.0), image, atol=1e-6)
    half = pixels(restorer, image, tile=64, strength=0.5)
    assert np.allclose(half, (image + full) / 2, atol=1e-6)


def test_candidates_are_those_of_the_next_seeds(restorer: Restorer) -> None:
    image = photograph(40, 48)
    found = restorer.restore_pixels(image, seed=5, candidates=3)
    alone = [pixels(restorer, image, seed=seed) for seed in (5, 6, 7)]
    assert all(map(np.array_equal, found.candidates, alone))
    assert found.image is found.candidates[0] and found.calls == 6
    expected = np.stack(alone).astype(float).std(axis=0).mean(axis=2) / 255
    assert found.uncertainty is not None and found.uncertainty.dtype == np.float32
    assert np.allclose(found.uncertainty, expected, atol=1e-6) and expected.max() > 0.005


def test_deviation_is_in_units_of_white() -> None:
    black, white = np.zeros((2, 3, 3), np.uint16), np.full((2, 3, 3), 65535, np.uint16)
    assert np.allclose(deviation([black, white]), 0.5)


def test_degradation_that_is_told_changes_the_result(restorer: Restorer) -> None:
    image = photograph(40, 48).astype(np.float32) / 255
    auto = pixels(restorer, image)
    told = restorer.restore_pixels(image, degradation="noisy:0.5,an old print")
    assert told.prompt == pytest.approx({"noisy": 1 / 3, "an old print": 2 / 3})
    assert not np.array_equal(np.asarray(told.image), auto)
    assert told.degradation == restorer.restore_pixels(image).degradation


def test_progress_counts_calls_and_ends_with_the_result(restorer: Restorer) -> None:
    seen: list[Progress] = []
    shown: list[torch.Tensor] = []

    def on_step(progress: Progress) -> None:
        seen.append(progress)
        shown.append(progress.state())

    image = photograph(40, 48).astype(np.float32) / 255
    found = pixels(restorer, image, steps=3, candidates=2, on_step=on_step)
    assert [p.done for p in seen] == [1, 2, 3, 4, 5, 6] and {p.total for p in seen} == {6}
    assert {p.tile for p in seen} == {(0, 0, 40, 48)}
    assert all(
        state.shape == (3, 40, 48) and 0 <= state.min() <= state.max() <= 1 for state in shown
    )
    assert np.allclose(shown[2].permute(1, 2, 0).numpy(), found, atol=1e-6)


def test_what_progress_raises_ends_it(restorer: Restorer) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restorer(photograph(90, 100), tile=64, on_step=stop)


def test_no_float_image_larger_than_a_tile_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = tiny_restorer()
    network = restorer.model.denoiser.network
    taken = []
    network.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].shape))
    floats = []
    from_numpy = torch.from_numpy

    def spy(array: np.ndarray) -> torch.Tensor:
        floats.append(array.size if array.dtype == np.float32 else 0)
        return from_numpy(array)

    monkeypatch.setattr(torch, "from_numpy", spy)
    restorer(photograph(600, 200), tile=64, steps=1)
    assert max(height * width for _, _, height, width in taken) <= 64 * 64
    assert max(floats) <= 3 * 64 * 200


def bad(value: float) -> torch.Tensor:
    image = torch.full((3, 20, 20), 0.5)
    image[1, 2, 3] = value
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (bad(math.nan), "floats from nan"),
        (bad(math.inf), "floats from 0.5 to inf"),
        (bad(1.5), "floats from 0.5 to 1.5"),
        (bad(-0.1).numpy().transpose(1, 2, 0), "floats from -0.1 to 0.5"),
        (bad(0).permute(1, 2, 0), r"a tensor \[20, 20, 3\] of torch.float32"),
        (bad(0)[0], r"a tensor \[20, 20\]"),
        ((bad(0) * 255).to(torch.uint8), "of torch.uint8"),
        (np.zeros((3, 20, 20), np.uint8), r"an array \[3, 20, 20\] of uint8"),
        (np.zeros((20, 20, 4), np.uint8), r"an array \[20, 20, 4\] of uint8"),
        (np.zeros((0, 20, 3), np.uint8), r"an array \[0, 20, 3\]"),
        (np.zeros((20, 20, 3), np.int64), "of int64"),
        (np.zeros((20, 20, 3), bool), "of bool"),
        (Image.new("F", (20, 20)), "mode F"),
        (3, "a int is no image"),
        ("no such.png", "no such.png: cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(restorer: Restorer, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restorer(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be in 1..100 .* got 0"),
        ({"steps": 101}, "got 101"),
        ({"seed": -1}, "seed must be in 0.."),
        ({"seed": 2**63}, "got 9223372036854775808"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"tile": 63}, "64 pixels or more, got 63"),
        ({"tile": "big"}, "got 'big'"),
        ({"strength": 1.1}, "strength must be in 0..1, got 1.1"),
        ({"strength": math.nan}, "got nan"),
        ({"candidates": 0}, "candidates must be 1 or more"),
        ({"degradation": "noissy"}, "if 'noisy' is meant"),
    ],
)
def test_options_out_of_range_are_refused(
    restorer: Restorer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        restorer(photograph(20, 20), **options)


@pytest.mark.parametrize(
    "changes", [{"device": "cuda:99"}, {"device": "abacus"}, {"precision": "float8"}]
)
def test_devices_and_precisions_there_are_not_are_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes.values()))):
        tiny_restorer(**changes)


def test_network_that_makes_nan_is_named() -> None:
    restorer = tiny_restorer()
    restorer.model.denoiser.network.head.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        restorer(photograph(20, 20))


def test_half_precision_agrees(restorer: Restorer) -> None:
    half = tiny_restorer(precision="bfloat16")
    image = photograph(64, 70)
    first, second = pixels(restorer, image), pixels(half, image)
    assert psnr(first, second) > 40 and not np.array_equal(first, second)


def test_import_needs_nothing_that_windows_lacks() -> None:
    imports = "import pipeline.restore.runner, pipeline.app.service"
    code = f"import sys; sys.modules['fcntl'] = None\n{imports}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_tiny_network_corrects_little() -> None:
    """What the tests above rest on: random, and yet as slight as a trained one."""
    network = tiny_denoiser().network
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    correction = network(x, x, 50, torch.ones(1, 32), torch.ones(1, 32)).abs().mean()
    assert 0.01 < correction < 0.2


def test_example_of_the_documentation_runs(
    restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[3] / "docs" / "restoring.md"
    example = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    Image.fromarray(photograph(40, 48)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Restorer, "from_pretrained", lambda: restorer)
    exec(compile(example, str(page), "exec"), {})
    assert Image.open("restored.png").size == (48, 40)

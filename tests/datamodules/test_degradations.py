"""The synthetic degradations: their laws, their strengths, and how they are found."""

from __future__ import annotations

import importlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from datamodules import degradations
from datamodules.degradations import WORDS, degrade, discover
from datamodules.degradations._common import (
    LEVELS,
    from_linear,
    line_kernel,
    smooth_noise,
    to_float,
    to_linear,
    to_pixels,
)
from datamodules.degradations.hazy import guided_filter
from datamodules.degradations.motion_blurry import mean_frame, splat, trajectory_kernel
from datamodules.degradations.noisy import add_noise
from datamodules.degradations.raindrop import refract
from datamodules.degradations.rainy import streaks
from datamodules.degradations.uncompleted import fill, strokes
from datamodules.images import Pixels, read_image

GOLDEN = Path(__file__).parents[1] / "golden" / "degrade"
PACKAGE = Path(degradations.__file__).parent
TEN = [
    "hazy",
    "jpeg-compressed",
    "low-light",
    "motion-blurry",
    "noisy",
    "raindrop",
    "rainy",
    "shadowed",
    "snowy",
    "uncompleted",
]

MEAN_PSNR = {
    "hazy": (12, 19),
    "jpeg-compressed": (22, 29),
    "low-light": (6, 13),
    "motion-blurry": (20, 27),
    "noisy": (14, 16),
    "raindrop": (17, 25),
    "rainy": (10, 15),
    "shadowed": (15, 22),
    "snowy": (15, 21),
    "uncompleted": (7, 13),
}
"""About the benchmarks' own mean PSNR in dB, as far as so few photographs can tell."""


def photographs(side: int) -> list[Pixels]:
    """The middle of photographs at half their size, where the details are."""
    halved = [p[::2, ::2] for p in (data.astronaut(), data.coffee(), data.chelsea())]
    middles = [((p.shape[0] - side) // 2, (p.shape[1] - side) // 2) for p in halved]
    crops = (p[y : y + side, x : x + side] for p, (y, x) in zip(halved, middles, strict=True))
    return [frozen(np.ascontiguousarray(crop)) for crop in crops]


def frozen(image: Pixels) -> Pixels:
    """An image that cannot be written to: what changes its input fails."""
    image.flags.writeable = False
    return image


def flat(level: int, height: int = 96, width: int = 128) -> Pixels:
    return frozen(np.full((height, width, 3), level, np.uint8))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def psnr(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


# What all of them promise


def test_the_ten_words() -> None:
    assert list(WORDS) == TEN


def test_an_unknown_word_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'foggy'.*hazy, jpeg-compressed.*uncompleted"):
        degrade("foggy", flat(0), 0)


@pytest.mark.parametrize("word", TEN)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 301), (301, 32)])
@pytest.mark.parametrize("level", [0, 127, 255])
def test_any_size_and_extreme_images(word: str, size: tuple[int, int], level: int) -> None:
    for seed in range(3):
        degraded = degrade(word, flat(level, *size), seed)
        assert degraded.shape == (*size, 3)
        assert degraded.dtype == np.uint8
        assert degraded.flags.writeable


@pytest.mark.parametrize("word", TEN)
def test_the_seed_decides(word: str) -> None:
    clean = photographs(128)[0]
    first = degrade(word, clean, 1)
    assert np.array_equal(first, degrade(word, clean, 1))
    assert np.array_equal(first, degrade(word, clean, 2)) == (word == "jpeg-compressed")


@pytest.mark.parametrize("word", TEN)
def test_views_give_the_same_as_copies(word: str) -> None:
    view = data.astronaut()[50:114, 200:120:-1]
    assert np.array_equal(degrade(word, view, 5), degrade(word, view.copy(), 5))


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("word", TEN)
def test_a_crop_is_about_as_degraded_as_in_the_benchmarks(word: str, side: int) -> None:
    values = [psnr(degrade(word, p, s), p) for p in photographs(side) for s in range(12)]
    low, high = MEAN_PSNR[word]
    margin = 2 if side == 64 else 0
    assert low - margin < np.mean(values) < high + margin
    assert max(values) < 40, "a crop came out nearly clean"


# Discovery


def test_an_eleventh_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PACKAGE, tmp_path / "eleven", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "eleven" / "added.py").write_text(
        'WORD = "inverted"\n\ndef degrade(clean, rng):\n    return 255 - clean\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    eleven = importlib.import_module("eleven")
    assert list(eleven.WORDS) == sorted([*TEN, "inverted"])
    assert np.array_equal(eleven.degrade("inverted", flat(3), 0), flat(252))
    assert np.array_equal(eleven.degrade("noisy", flat(3), 0), degrade("noisy", flat(3), 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('WORD = "foggy"\n', r"odd\.py: needs WORD and degrade"),
        ("def degrade(clean, rng):\n    return clean\n", r"odd\.py: needs WORD and degrade"),
        ('WORD = "rainy"\n\ndef degrade(clean, rng):\n    return clean\n', "'rainy' is taken"),
    ],
)
def test_a_faulty_file_is_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / f"faulty_{tmp_path.name}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a_rainy.py").write_text('WORD = "rainy"\n\ndef degrade(clean, rng): ...\n')
    (package / "odd.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        discover([str(package)], package.name)


# The exact ones


def test_jpeg_is_the_reference_s_bit_for_bit() -> None:
    src, expected = read_image(GOLDEN / "src.png"), read_image(GOLDEN / "jpeg10_lq.png")
    assert np.array_equal(degrade("jpeg-compressed", src, 0), expected)


def test_jpeg_is_pillow_s_quality_10_bit_for_bit() -> None:
    clean = photographs(128)[1][:77, :93]
    buffer = io.BytesIO()
    Image.fromarray(clean).save(buffer, "JPEG", quality=10)
    assert np.array_equal(degrade("jpeg-compressed", clean, 0), np.array(Image.open(buffer)))


def test_noise_is_the_reference_s_bit_for_bit() -> None:
    src = read_image(GOLDEN / "src.png")
    n = np.random.RandomState(123).standard_normal(src.shape)[..., ::-1].astype(np.float32)
    assert np.array_equal(add_noise(src, n), read_image(GOLDEN / "noisy50_lq_seed123.png"))


def test_noise_is_white_and_of_standard_deviation_50() -> None:
    noise = degrade("noisy", flat(128, 256, 256), 0) - 128.0
    assert abs(noise.mean() + 0.5) < 0.3, "truncation takes half a level off"
    assert abs(noise.std() - 49.5) < 0.5, "clipping at 2.5 sigma takes half a level off"
    channels = np.corrcoef(noise.reshape(-1, 3).T)
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())
    assert np.abs(channels - np.eye(3)).max() < 0.02
    assert abs(neighbours[0, 1]) < 0.02


def test_holes_are_white_and_the_rest_is_untouched() -> None:
    clean = photographs(128)[0]
    holes = strokes(rng(3), (128, 128))
    filled = fill(clean, holes)
    assert np.all(filled[holes > 0] == 255)
    assert np.array_equal(filled[holes == 0], clean[holes == 0])
    assert np.array_equal(filled, degrade("uncompleted", clean, 3))


def test_holes_cover_what_repaint_s_thin_masks_do() -> None:
    coverage = [np.mean(strokes(rng(s), (256, 256)) > 0) for s in range(150)]
    assert abs(np.mean(coverage) - 0.297) < 0.03
    assert abs(np.std(coverage) - 0.122) < 0.03


def test_a_small_crop_has_a_hole_and_something_left() -> None:
    coverage = [np.mean(strokes(rng(s), (64, 64)) > 0) for s in range(200)]
    assert min(coverage) >= 0.03
    assert max(coverage) < 0.95


# The modelled ones: laws read off constant images, where the same seed draws the same


def test_haze_obeys_the_scattering_model() -> None:
    for seed in range(5):
        black = to_float(degrade("hazy", flat(0), seed))
        white = to_float(degrade("hazy", flat(255), seed))
        grey = to_float(degrade("hazy", flat(51), seed))
        t = white - black
        A = black.sum() / (1 - t).sum()
        assert 0.7 - 0.01 < A < 1.01
        assert np.exp(-1.8) - 0.01 < t.min() < t.max() <= 1
        np.testing.assert_allclose(black, A * (1 - t), atol=1.5 / 255)
        np.testing.assert_allclose(grey, 0.2 * t + A * (1 - t), atol=1.5 / 255)


def test_haze_is_thicker_at_the_top() -> None:
    rows = np.mean([degrade("hazy", flat(0), s).mean(axis=(1, 2)) for s in range(20)], axis=0)
    assert np.all(np.diff(rows[::16]) < 0)


def test_guided_filter_follows_its_guide() -> None:
    guide = rng().random((40, 50), dtype=np.float32)
    np.testing.assert_allclose(guided_filter(guide, 3 * guide + 1, 4, 1e-7), 3 * guide + 1, 1e-3)
    plain = np.full_like(guide, 0.5)
    ramp = np.broadcast_to(np.arange(50, dtype=np.float32), (40, 50))
    np.testing.assert_allclose(guided_filter(plain, ramp, 2, 1e-3)[:, 5:-5], ramp[:, 5:-5], 1e-4)


def test_low_light_is_a_power_law_with_noise_that_grows_with_light() -> None:
    levels = np.array([150, 200, 250])
    for seed in range(5):
        light = [to_linear(to_float(degrade("low-light", flat(n), seed))) for n in levels]
        y = from_linear(np.array([x.mean() for x in light], np.float32))
        g = np.diff(np.log(y)) / np.diff(np.log(levels / 255))
        assert 1.4 < g.mean() < 5.1
        assert abs(g[0] - g[1]) < 0.25
        assert np.all(y < levels / 255)
        assert np.all(np.diff([x.var() for x in light]) > 0)


def test_blur_keeps_constants_and_light() -> None:
    for seed in range(6):
        assert np.abs(degrade("motion-blurry", flat(90), seed).astype(int) - 90).max() <= 1
    light = np.zeros((65, 65, 3), np.float32)
    light[32, 32] = 1
    for seed in range(6):
        assert abs(mean_frame(rng(seed), light).sum() / 3 - 1) < 0.05


def test_the_trajectory_is_a_centred_density() -> None:
    for seed in range(20):
        kernel = trajectory_kernel(rng(seed))
        y, x = np.indices(kernel.shape) - kernel.shape[0] // 2
        assert kernel.min() >= 0
        assert abs(kernel.sum() - 1) < 1e-5
        assert abs((kernel * x).sum()) < 1e-3
        assert abs((kernel * y).sum()) < 1e-3
        assert kernel.max() < 0.5, "the camera moves"


def test_a_point_between_pixels_is_shared() -> None:
    kernel = splat(np.array([0.25 - 0.5j]))
    expected = {(0, 0): 0.375, (0, 1): 0.125, (-1, 0): 0.375, (-1, 1): 0.125}
    middle = kernel.shape[0] // 2
    for (row, column), weight in expected.items():
        assert kernel[middle + row, middle + column] == pytest.approx(weight)


def test_rain_is_grey_and_only_brightens() -> None:
    clean = photographs(128)[2]
    assert np.all(degrade("rainy", clean, 4) >= clean)
    on_black = degrade("rainy", flat(0), 4)
    assert np.array_equal(on_black[..., 0], on_black[..., 2])
    assert np.mean(on_black > 25) > 0.1


def test_rain_falls_at_its_angle() -> None:
    layers = np.array([streaks(rng(s), (64, 64), 60) for s in range(20)])
    upper, lower = layers[:, :-3], layers[:, 3:]
    along = (upper[..., :-2] * lower[..., 2:]).mean()
    against = (upper[..., 2:] * lower[..., :-2]).mean()
    assert along > 1.5 * against


def test_rain_enters_over_the_borders() -> None:
    layers = np.array([streaks(rng(s), (64, 64), 90) for s in range(100)])
    for border in (layers[:, 0], layers[:, -1]):
        assert border.mean() == pytest.approx(layers.mean(), rel=0.1)
        assert border.std() == pytest.approx(layers.std(), rel=0.1)


def test_snow_mixes_one_colour_into_the_image() -> None:
    for seed in range(5):
        black = to_float(degrade("snowy", flat(0), seed))
        white = to_float(degrade("snowy", flat(255), seed))
        grey = to_float(degrade("snowy", flat(102), seed))
        z = 1 - (white - black).mean(axis=2)
        np.testing.assert_allclose(grey, black + 0.4 * (1 - z[..., None]), atol=2 / 255)
        dense = z > 0.4
        colour = black[dense] / z[dense][:, None]
        assert dense.any()
        assert 0.8 < colour.min() < colour.max() < 1.06
        assert np.all(colour.std(axis=0) < 0.01)


def test_snow_is_as_dense_on_a_crop_as_on_a_photograph() -> None:
    def opacity(side: int, seeds: int) -> float:
        return float(np.mean([degrade("snowy", flat(0, side, side), s) for s in range(seeds)]))

    assert opacity(64, 60) == pytest.approx(opacity(256, 30), rel=0.2)


def test_drops_leave_the_rest_of_the_view_untouched() -> None:
    clean = frozen(data.astronaut()[:256, :256].copy())
    for seed in range(5):
        changed = np.any(degrade("raindrop", clean, seed) != clean, axis=2)
        assert 0.05 < changed.mean() < 0.8


def test_a_slope_bends_the_view() -> None:
    y, x = np.indices((30, 40)).astype(np.float32)
    bent = refract(np.dstack([x, y, x + y]), 0.01 * x - 0.02 * y, 200)[10:-10, 10:-10]
    inside = np.s_[10:-10, 10:-10]
    np.testing.assert_allclose(bent[..., 0], x[inside] + 2, atol=1e-3)
    np.testing.assert_allclose(bent[..., 1], y[inside] - 4, atol=1e-3)


def test_drops_are_brighter_than_a_plain_wall() -> None:
    for seed in range(5):
        wall = degrade("raindrop", flat(100), seed)
        assert wall.min() == 100
        assert wall.max() > 104


def test_a_shadow_is_an_affine_darkening_under_a_matte() -> None:
    for seed in range(8):
        Y = {n: to_float(degrade("shadowed", flat(n), seed))[..., 1] for n in (255, 128, 25)}
        y2 = Y[255].min()
        m = (1 - Y[255]) / (1 - y2)
        core = Y[128][Y[255] == y2].mean()
        x1 = (128 / 255 * y2 - core) / (y2 - core)
        J = 25 / 255
        dark = max(0, y2 / (1 - x1) * (J - x1))
        assert -0.02 < x1 < 0.27
        np.testing.assert_allclose(Y[25], (1 - m) * J + m * dark, atol=2 / 255)


def test_a_shadow_darkens_reddish_more_than_bluish_light() -> None:
    differences = []
    for seed in range(10):
        wall = degrade("shadowed", flat(200), seed).astype(int)
        shaded = wall[..., 1] < wall.max() - 10
        assert wall.max() == 200
        assert 0.03 < shaded.mean() < 0.9
        differences.append((wall[..., 2] - wall[..., 0])[shaded].mean())
        assert not degrade("shadowed", flat(0), seed).any()
    assert np.mean(differences) > 5


# What they share


def test_number_formats_round_trip() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_pixels(to_float(every)), every)
    assert np.array_equal(to_pixels(from_linear(to_linear(to_float(every)))), every)
    assert np.array_equal(LEVELS[every], to_float(every))
    assert np.array_equal(to_pixels(np.array([-0.1, 1.1, 0.4999 / 255])), [0, 255, 0])
    assert to_linear(np.float32([0.5]))[0] == pytest.approx(0.21404, abs=1e-5)


def test_smooth_noise_is_standard_and_smooth() -> None:
    noise = smooth_noise(rng(), (90, 120), 4)
    assert noise.shape == (90, 120)
    assert abs(noise.mean()) < 1e-5
    assert abs(noise.std() - 1) < 1e-5
    assert np.abs(np.diff(noise, axis=1)).max() < 0.3


@pytest.mark.parametrize("angle", [0, 30, 90, 135])
def test_a_line_has_its_length_width_and_direction(angle: float) -> None:
    kernel = line_kernel(21, angle, 3)
    y, x = np.indices(kernel.shape) - kernel.shape[0] // 2
    assert kernel.shape[0] % 2 == 1
    assert kernel.max() == 1
    assert kernel.sum() == pytest.approx(21 * 3 + np.pi * 1.5**2, rel=0.03)
    along = np.cos(np.radians(angle)) * x + np.sin(np.radians(angle)) * y
    across = np.cos(np.radians(angle)) * y - np.sin(np.radians(angle)) * x
    assert (kernel * along**2).sum() > 20 * (kernel * across**2).sum()

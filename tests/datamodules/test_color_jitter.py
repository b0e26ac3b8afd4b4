"""Exposures and colours of photographs varied before they are degraded."""

import numpy as np

from datamodules.augment import color_jitter


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def test_no_strength_changes_nothing():
    image = noise()
    assert np.array_equal(color_jitter(image, 0, np.random.default_rng(1)), image)


def test_the_same_numbers_give_the_same_image_and_others_another():
    image = noise()
    before = image.copy()
    one, again, other = (color_jitter(image, 0.4, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.dtype == np.uint8
    assert np.array_equal(image, before)


def test_values_follow_the_formula_and_keep_their_order():
    image, rng = noise(), np.random.default_rng(3)
    gamma, gain, *colours = np.exp(0.5 * rng.uniform(-1, 1, 5) * [1, 1, 0.25, 0.25, 0.25])
    expected = np.clip(gain * np.array(colours) * (image / 255) ** gamma, 0, 1) * 255
    assert np.abs(color_jitter(image, 0.5, np.random.default_rng(3)) - expected).max() <= 0.5 + 1e-9


def test_strength_bounds_the_gain():
    grey = np.full((2, 2, 3), 255, np.uint8)
    darkest = min(color_jitter(grey, 0.4, np.random.default_rng(s)).min() for s in range(200))
    assert 255 * np.exp(-0.5) - 0.5 <= darkest < 255 * np.exp(-0.4)

"""Other exposures and colours of a photograph, so that few photographs stand for more."""

from __future__ import annotations

import numpy as np

from datamodules.degradations._common import LEVELS, to_pixels
from datamodules.images import Pixels


def jitter(clean: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Another photograph of the same: y_c = clip(g h_c x_c^gamma), for each colour c.

    The logarithms of gamma and g are uniform within `strength`, those of h_c within a fourth of it.

    Args:
        clean: an RGB image `[H, W, 3]`, uint8; it is not changed.
        strength: from 0, which changes nothing; at 0.5, contrast and brightness vary by factors
            between 0.6 and 1.65, and bright skies may become white.
        rng: of the factors; five numbers are drawn.
    """
    gamma, gain, *colours = np.exp(strength * rng.uniform(-1, 1, 5) * [1, 1, 0.25, 0.25, 0.25])
    curves = LEVELS[:, None] ** gamma * gain * colours
    table = to_pixels(curves)
    jittered: Pixels = np.stack([table[clean[..., c], c] for c in range(3)], axis=-1)
    return jittered

"""Peak signal-to-noise ratio, on RGB and on luma."""

from __future__ import annotations

import math
from functools import partial

from modules.metrics import Image, ImageMetric, register
from modules.metrics._variants import VARIANTS, Variant

PSNR = "psnr_rgb_border4"
"""Name of the one that images and trainings are ranked by."""


def psnr(variant: Variant, restored: Image, clean: Image | None) -> float:
    """10 log10(255^2 / mean((x - y)^2)), in dB; inf where the images are equal."""
    assert clean is not None
    difference = variant.planes(restored) - variant.planes(clean)
    mse = float((difference**2).mean())
    return 10 * math.log10(255**2 / mse) if mse else math.inf


for variant in VARIANTS:
    register(
        ImageMetric(
            name=f"psnr_{variant.name}",
            label="PSNR",
            short=f"psnr{variant.short}",
            table=variant.table,
            convention=variant.convention,
            digits=2,
            higher_is_better=True,
            position=variant.position,
            unit="dB",
            min_size=(2 * variant.border + 1,) * 2,
            in_validation=variant is VARIANTS[0],
            load=lambda device, variant=variant: partial(psnr, variant),  # type: ignore[misc]
        )
    )

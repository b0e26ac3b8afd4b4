"""JPEG at quality 10 with 4:2:0 chroma, the benchmark's compression."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from datamodules.images import Pixels

WORD = "jpeg-compressed"


def degrade(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """Y = decode(encode(J)); nothing in it is random."""
    buffer = io.BytesIO()
    Image.fromarray(clean).save(buffer, "JPEG", quality=10, subsampling="4:2:0")
    return np.array(Image.open(buffer))

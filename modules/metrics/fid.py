"""Fréchet inception distance (Heusel et al., NeurIPS 2017).

With N images a set, covariances of Inception's 2048 features have full rank only from N = 2049 on,
and FID is too high by a term that falls as 1/N (Chong and Forsyth, CVPR 2020); the authors advise
10,000. Figures of fewer compare methods on the same images and nothing else, and those of a few
dozen hardly that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modules.metrics import Image, SetMetric, Weights, register

if TYPE_CHECKING:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

WEIGHTS = Weights(
    "FID",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
)


class InceptionDistance:
    """FID of sets of images, whose order does not count; sums are kept in float64."""

    def __init__(self, metric: FrechetInceptionDistance) -> None:
        """Use torchmetrics' implementation, on its device."""
        self.metric = metric

    def set_reference(self, images: Iterable[Image]) -> None:
        """Take these clean images, two or more."""
        self.metric.reset_real_features = True
        self.metric.reset()
        self.metric.reset_real_features = False
        self._update(images, real=True)

    def __call__(self, images: Iterable[Image]) -> float:
        """Distance of two or more restored images from the reference set, 0 or more."""
        self.metric.reset()
        self._update(images, real=False)
        return float(self.metric.compute())

    def _update(self, images: Iterable[Image], real: bool) -> None:
        import torch

        for image in images:
            planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))[None])
            self.metric.update(planes.to(self.metric.device), real=real)


def load(device: torch.device) -> InceptionDistance:
    """FID; images are resized as TensorFlow did for published figures, without antialiasing.

    Raises:
        Unavailable: Inception's weight file is missing or unreadable.
    """
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    from modules.metrics._torch_weights import load_tensors

    weights = load_tensors(WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        # The extractor would unpickle the downloaded file unguarded; a copy of tensors is safe.
        plain = Path(folder) / "inception.pth"
        torch.save(weights, plain)
        metric = FrechetInceptionDistance(
            feature_extractor_weights_path=str(plain), antialias=False
        )
    return InceptionDistance(metric.to(device))


register(
    SetMetric(
        name="fid",
        label="FID",
        short="fid",
        table="FID",
        convention="Inception v3 of TensorFlow, 8 bit, against the clean images",
        digits=2,
        higher_is_better=False,
        position=11,
        weights=WEIGHTS,
        load=load,
        min_images=2,
        too_few="a single image; FID is a distance between the spreads of many images, and needs "
        "two at least (below some 2048 it says little)",
    )
)

"""LPIPS v0.1 on AlexNet (Zhang et al., CVPR 2018)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from modules.metrics import Image, ImageMetric, Score, Weights, register

if TYPE_CHECKING:
    import torch

WEIGHTS = Weights("LPIPS", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")
"""Torchvision's AlexNet; the weights on top of it come with the package `lpips`."""


def load(device: torch.device) -> Score:
    """The distance of two images, 0 or more.

    Raises:
        Unavailable: AlexNet's weight file is missing or unreadable.
    """
    import lpips
    import torch

    from modules.metrics._torch_weights import load_tensors

    backbone = load_tensors(WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torchvision's, about old arguments
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    slices = network.net
    slices.load_state_dict(
        {name: backbone[f"features.{name.split('.', 1)[1]}"] for name in slices.state_dict()}
    )
    network.requires_grad_(False).eval().to(device)

    def distance(restored: Image, clean: Image | None) -> float:
        assert clean is not None
        both = (
            torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))[None]).to(device)
            for image in (restored, clean)
        )
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            return float(network(*(image.float() / 255 for image in both), normalize=True))

    return distance


register(
    ImageMetric(
        name="lpips_alex",
        label="LPIPS",
        short="lpips",
        table="LPIPS",
        convention="AlexNet, v0.1, 8 bit, nothing cut",
        digits=3,
        higher_is_better=False,
        position=10,
        min_size=(31, 31),  # what AlexNet's layers take
        weights=WEIGHTS,
        in_validation=True,
        load=load,
    )
)

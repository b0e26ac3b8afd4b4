"""A small restorer with random weights, whose corrections are as slight as trained ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modules.clip.daclip import build_daclip
from modules.clip.encoder import DaClipEncoder
from modules.diffusion.prediction import PREDICTION_TYPES
from modules.diffusion.schedule import make_noise_schedule
from modules.inference.restore import Denoiser
from modules.networks.unet import ConditionalUNet
from pipeline.restore.api import Restorer

WORDS = ("low-light", "noisy", "rainy")
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SAMPLER = {"name": "posterior", "eta": 0.0, "num_steps": 2, "timestep_spacing": "uniform"}


def tiny_controller() -> DaClipEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DaClipEncoder(build_daclip(CLIP), WORDS)


def tiny_denoiser(**network_settings: Any) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = ConditionalUNet(32, (1, 1), 32, **network_settings).eval().requires_grad_(False)
    network.head.weight *= 0.3
    return Denoiser(network, make_noise_schedule(), PREDICTION_TYPES.find("sample"))


def tiny_restorer(**changes: Any) -> Restorer:
    settings = {"device": "cpu", "precision": "float32"} | changes
    return Restorer(tiny_controller(), tiny_denoiser(), SAMPLER, **settings)


def gradient(height: int, width: int) -> NDArray[np.uint8]:
    """A picture that changes slowly, from side to side and from top to bottom."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x / width, y / height, (x + y) / (width + height)]
    return np.rint(40 + 175 * np.stack(planes, axis=-1)).astype(np.uint8)

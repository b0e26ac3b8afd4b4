"""Weights in the reference's own files, such as `daclip_ViT-B-32.pt` and `universal-ir.pth`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datamodules.degradations import WORDS
from modules.daclip import build_daclip
from modules.prediction import parameterisation
from modules.reference.daclip import (
    convert_daclip,
    infer_architecture,
)
from modules.reference.unet import convert_unet, infer_unet_config
from modules.restorer import Controller, Denoiser
from modules.sde import make_tables
from modules.unet import ConditionalUNet

CONTROLLER, RESTORER = "visual_control.", "init_conv.weight"
"""Names that tell the reference's two kinds of files apart."""


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """`controller`, `restorer`, or nothing where it is neither of the reference's."""
    if any(name.startswith(CONTROLLER) for name in tensors):
        return "controller"
    return "restorer" if RESTORER in tensors else ""


def released_controller(tensors: Mapping[str, Tensor]) -> Controller:
    """The reference's DA-CLIP, which tells the ten words apart.

    Raises:
        ValueError: the tensors are not a whole one; its heads are taken to have 64 channels, as
            those of ViT-B-32 and ViT-L-14 have.
    """
    daclip = build_daclip(infer_architecture(tensors))
    daclip.load_state_dict(convert_daclip(tensors))
    return Controller(daclip, WORDS)


def released_restorer(tensors: Mapping[str, Tensor]) -> Denoiser:
    """The reference's U-Net, which predicts noise under the cosine schedule with T = 100.

    Raises:
        ValueError: the tensors are not a whole one.
    """
    weights = convert_unet(tensors)
    network = ConditionalUNet(**infer_unet_config(tensors))
    network.load_state_dict(weights)
    network.to(memory_format=torch.channels_last)
    network.eval().requires_grad_(False)
    return Denoiser(network, make_tables("cosine"), parameterisation("noise"))

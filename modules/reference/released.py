"""Weights in the reference's own files, such as `daclip_ViT-B-32.pt` and `universal-ir.pth`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from modules.reference.daclip import convert_daclip, infer_architecture
from modules.reference.unet import convert_unet, infer_unet_config

REFERENCE_WORDS = (
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
)
"""The degradations that the released `universal-ir` controllers were trained on."""
CONTROLLER, RESTORER = "visual_control.", "init_conv.weight"
"""Names that tell the reference's two kinds of files apart."""


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """`controller`, `restorer`, or nothing where it is neither of the reference's."""
    if any(name.startswith(CONTROLLER) for name in tensors):
        return "controller"
    return "restorer" if RESTORER in tensors else ""


def controller_as_ours(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What to build, and its weights, of the reference's DA-CLIP, which tells the ten words apart.

    Raises:
        ValueError: the tensors are not a whole one; its heads are taken to have 64 channels, as
            those of ViT-B-32 and ViT-L-14 have.
    """
    about = {"architecture": infer_architecture(tensors), "words": REFERENCE_WORDS}
    return about, convert_daclip(tensors)


def restorer_as_ours(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What to build, and its weights, of the reference's U-Net.

    It predicts noise under the cosine schedule with T = 100, and does not say which controller it
    was trained with.

    Raises:
        ValueError: the tensors are not a whole one.
    """
    weights = convert_unet(tensors)
    network = {"_target_": "modules.networks.unet.ConditionalUNet", **infer_unet_config(tensors)}
    return {
        "network": network,
        "prediction_type": "epsilon",
        "process": {"noise_schedule": "cosine"},
    }, weights

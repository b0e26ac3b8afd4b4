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
WILD_WORDS = ("blur", "jpeg block", "noise", "ringing artifact")
"""Those of wild-IR's controller, which was trained on their combinations."""
WILD_EMBED_DIM = 768
"""Of ViT-L-14. The files do not say what they were trained on; of the released controllers only
wild-IR's has this CLIP, and the `universal-ir` ones have ViT-B-32."""
CONTROLLER, RESTORER = "visual_control.", "init_conv.weight"
"""Names that tell the reference's two kinds of files apart."""


def kind_of(tensors: Mapping[str, Tensor]) -> str:
    """`controller`, `restorer`, or nothing where it is neither of the reference's."""
    if any(name.startswith(CONTROLLER) for name in tensors):
        return "controller"
    return "restorer" if RESTORER in tensors else ""


def controller_as_ours(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What to build, and its weights, of the reference's DA-CLIP.

    Its degradations are the ten of `universal-ir`, or those of wild-IR where the CLIP is ViT-L-14.

    Raises:
        ValueError: the tensors are not a whole one; its heads are taken to have 64 channels, as
            those of ViT-B-32 and ViT-L-14 have.
    """
    architecture = infer_architecture(tensors)
    is_wild = architecture["embed_dim"] == WILD_EMBED_DIM
    words = WILD_WORDS if is_wild else REFERENCE_WORDS
    return {"architecture": architecture, "words": words}, convert_daclip(tensors)


def restorer_as_ours(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What to build, and its weights, of the reference's U-Net.

    It predicts noise under the cosine schedule with T = 100, and does not say which controller it
    was trained with.

    Raises:
        ValueError: the tensors are not a whole one.
    """
    weights = convert_unet(tensors)
    network = {"name": "unet", **infer_unet_config(tensors)}
    return {
        "network": network,
        "prediction_type": "epsilon",
        "process": {"noise_schedule": "cosine"},
    }, weights

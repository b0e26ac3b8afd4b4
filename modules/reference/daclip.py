"""DA-CLIP weights in the layout of the published implementation.

There the vision tower is stored twice, as `clip.visual.*` and `visual.*`, and the controller is
`visual_control.*`, its blocks one level deeper beside the `zero_modules`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor

from modules.clip.weights import read_state_dict, without_prefix

RENAMED = (
    (r"(clip\..+|logit_scale)", r"\1"),
    (r"visual_control\.transformer\.zero_modules\.(.+)", r"controller.zero_linears.\1"),
    (r"visual_control\.transformer\.transformer\.(.+)", r"controller.tower.transformer.\1"),
    (r"visual_control\.(.+)", r"controller.tower.\1"),
)

# A learning rate or a loss that numpy computed; NumPy 1 wrote its module's name differently.
NUMPY_SCALARS = (
    (multiarray.scalar, "numpy._core.multiarray.scalar"),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
)


def load_reference_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a released or trained checkpoint, in the reference's layout.

    Takes `{epoch, name, state_dict, optimizer}` as its training writes it, a bare state dict, or
    `.safetensors`. No code in the file is run: beside tensors and plain values only numpy's
    numbers are let through.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything else.
    """
    with torch.serialization.safe_globals(list(NUMPY_SCALARS)):
        return read_state_dict(Path(path))


def convert_daclip(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the reference's tensors to those of `DaClip`, leaving out the second tower.

    Raises:
        ValueError: a name is not of the reference's layout.
    """
    converted = {}
    for key, tensor in without_prefix(state_dict).items():
        if not key.startswith("visual."):
            converted[_rename(key)] = tensor
    return converted


def infer_architecture(
    state_dict: Mapping[str, Tensor], head_width: int = 64, text_head_width: int = 64
) -> dict[str, Any]:
    """Read open_clip's configuration off the shapes of a DA-CLIP state dict, in either layout.

    Args:
        state_dict: names and tensors.
        head_width: channels of a head in the vision tower, which no shape tells.
        text_head_width: channels of a head in the text tower.

    Returns:
        `{embed_dim, vision_cfg, text_cfg}`, for `build_daclip`.

    Raises:
        ValueError: it is no DA-CLIP state dict, or the heads do not divide a tower's width.
    """
    shapes = {key: tuple(value.shape) for key, value in without_prefix(state_dict).items()}
    try:
        width, _, patch_size, _ = shapes["clip.visual.conv1.weight"]
        tokens, _ = shapes["clip.visual.positional_embedding"]
        _, embed_dim = shapes["clip.visual.proj"]
        context_length, text_width = shapes["clip.positional_embedding"]
        vocab_size, _ = shapes["clip.token_embedding.weight"]
    except KeyError as error:
        raise ValueError(f"not the state dict of a DA-CLIP on a ViT: no {error}") from error
    if width % head_width or text_width % text_head_width:
        raise ValueError(
            f"heads of {head_width} and {text_head_width} channels do not divide the vision "
            f"tower's width {width} and the text tower's {text_width}; give their head widths"
        )
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "image_size": math.isqrt(tokens - 1) * patch_size,
            "layers": _layers(shapes, "clip.visual.transformer"),
            "width": width,
            "head_width": head_width,
            "patch_size": patch_size,
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": text_width // text_head_width,
            "layers": _layers(shapes, "clip.transformer"),
        },
    }


def _rename(key: str) -> str:
    for pattern, name in RENAMED:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    raise ValueError(
        f"{key} is not of the reference's DA-CLIP layout, which has clip.*, visual.*, "
        "visual_control.* and logit_scale"
    )


def _layers(shapes: Mapping[str, tuple[int, ...]], transformer: str) -> int:
    prefix = f"{transformer}.resblocks."
    return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})

"""Small files in the layout of the reference's released ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.evaluating import tiny_daclip
from tests.golden_vectors import GOLDEN


def reference_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours as the reference lays it out, its vision tower stored twice."""
    found = {}
    for name, tensor in state.items():
        new = re.sub(
            r"^controller\.zero_linears\.", "visual_control.transformer.zero_modules.", name
        )
        new = re.sub(
            r"^controller\.tower\.transformer\.", "visual_control.transformer.transformer.", new
        )
        new = re.sub(r"^controller\.tower\.", "visual_control.", new)
        found[new] = tensor
        if name.startswith("clip.visual."):
            found[name.removeprefix("clip.")] = tensor
    return found


def save_released_controller(path: Path) -> Path:
    """As the reference's training writes it, with a number of numpy's."""
    state = reference_names(tiny_daclip().state_dict())
    torch.save({"epoch": np.float64(2), "name": "run", "state_dict": state, "optimizer": {}}, path)
    return path


def save_released_restorer(path: Path) -> Path:
    """The network of the golden vectors, which takes that controller's embeddings."""
    torch.save(load_file(GOLDEN / "unet_daclip_sde" / "state_dict.safetensors"), path)
    return path

"""Reading weight files of networks."""

from __future__ import annotations

import pickle

import torch
from torch import Tensor

from modules.metrics import Weights


def load_tensors(weights: Weights) -> dict[str, Tensor]:
    """The tensors of a weight file, on the CPU, read without executing code.

    Raises:
        Unavailable: the file is missing or unreadable.
    """
    path = weights.find()
    try:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise weights.unreadable("plain tensors") from error
    return tensors

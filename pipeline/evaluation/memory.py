"""The largest memory in use: on a GPU of what torch has allocated, else of the whole process."""

from __future__ import annotations

from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
MEANING = {
    "cuda": "largest GPU memory allocated by torch while a batch was restored",
    "cpu": "largest resident memory of the whole process so far, everything it had loaded included",
}
"""What the number is, by the kind of device."""


def reset_peak(device: torch.device) -> None:
    """Count anew on a GPU; a process's own peak cannot be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float | None:
    """Megabytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if not STATUS.is_file():
        return None
    lines = STATUS.read_text().splitlines()
    return next((int(x.split()[1]) * 1024 / 1e6 for x in lines if x.startswith("VmHWM:")), None)

"""The largest memory in use: on a GPU of what torch has allocated, else of the whole process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
MEANING = {
    "cuda": "largest GPU memory allocated by torch while a batch was restored",
    "cpu": "largest resident memory of the whole process while a batch was restored, everything it "
    "had loaded included",
}
"""What the number is, by the kind of device."""


def reset_peak(device: torch.device) -> None:
    """Count anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not Linux, or not allowed: then it is the peak so far
            RESET.write_text("5")


def peak_mb(device: torch.device) -> float | None:
    """Megabytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if not STATUS.is_file():
        return None
    lines = STATUS.read_text().splitlines()
    return next((int(x.split()[1]) * 1024 / 1e6 for x in lines if x.startswith("VmHWM:")), None)

"""The machine a benchmark ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

CUDA = torch.cuda.is_available()


def machine(versions: Mapping[str, str]) -> dict[str, object]:
    """Processor, load and accelerator, with the versions of Python, torch and what is given."""
    cpu = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")]
    found = {"Python": platform.python_version(), "torch": torch.__version__, **versions}
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "load when it began": load(),
        "accelerator": torch.cuda.get_device_name() if CUDA else "none",
        "versions": ", ".join(f"{name} {version}" for name, version in found.items()),
    }


def load() -> str:
    """Processes that wanted a core, over the last 1, 5 and 15 minutes."""
    return " ".join(f"{mean:.2f}" for mean in os.getloadavg())

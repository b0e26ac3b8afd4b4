"""What the machine offers: a device, a precision, and memory, which says whether to tile."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from modules.diffusion.prediction import PredictionType, from_epsilon
from modules.inference.tiling import ALIGN

PRECISIONS = ("auto", "float32", "bfloat16")
SIDE, LEAST = 512, 256
"""Side of a tile, and where even that takes too much memory the least one, in pixels."""
SHARE = 0.7
"""Of the free memory that a network call may take."""
UNKNOWN = 2 * 2**30
"""Bytes taken to be free where the system does not say."""
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "Invalid buffer size",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch says where memory runs out, of CPUs, of MPS, and of CUDA outside its allocator."""


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is a CUDA GPU, else Apple's, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; choose auto, cpu, cuda or mps") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps)}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise ValueError(f"there is no device {name!r} on this machine; auto chooses one")
    return device


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is known to be faster than float32.

    So it is on GPUs since Ampere and on CPUs with AMX or AVX512-BF16; where it is emulated it is
    many times slower.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    )


def choose_dtype(
    precision: str, device: torch.device, prediction_type: PredictionType
) -> torch.dtype:
    """The dtype that the network's products are computed in.

    `auto` is bfloat16 on a device that is fast in it, else float32; and float32 for a network that
    predicts noise, whose errors grow at large times.

    Raises:
        ValueError: it is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; choose one of: {', '.join(PRECISIONS)}")
    if precision == "auto":
        pays = is_fast_in_bfloat16(device) and prediction_type is not from_epsilon
        return torch.bfloat16 if pays else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def auto_side(height: int, width: int, bytes_per_pixel: float, device: torch.device) -> int | None:
    """Side of the tiles that memory asks for, None where the image may stay whole.

    A network call takes `bytes_per_pixel` for each pixel. An image stays whole where that is
    within `SHARE` of what is free; else its tiles have sides of `SIDE`, or less where that does
    not fit, either.
    """
    pixels = int(SHARE * free_bytes(device) / bytes_per_pixel)
    if height * width <= pixels:
        return None
    return max(LEAST, min(SIDE, math.isqrt(pixels) // ALIGN * ALIGN))


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    groups = _groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    found = [_available(Path("/proc/meminfo")), *(_limit(group) for group in groups)]
    return min((count for count in found if count is not None), default=UNKNOWN)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which torch mostly tells as a plain RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )


def _available(meminfo: Path) -> int | None:
    """What Linux says is available, in bytes."""
    if not meminfo.is_file():
        return None
    lines = (line.split() for line in meminfo.read_text().splitlines())
    return next((int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"), None)


def _groups(own: Path, root: Path) -> list[Path]:
    """The control group that this process is in, and those around it, as a service or container."""
    lines = own.read_text().splitlines() if own.is_file() else []
    name = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    group = root / name
    return [group, *(around for around in group.parents if around.is_relative_to(root))]


def _limit(group: Path) -> int | None:
    """What is left of a container's limit, in bytes; files that it has read can be let go."""
    limit, used = group / "memory.max", group / "memory.current"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return None
    stat = group / "memory.stat"
    counts = (line.split() for line in stat.read_text().splitlines()) if stat.is_file() else ()
    cached = next((int(count) for name, count in counts if name == "inactive_file"), 0)
    return max(0, int(limit.read_text()) - int(used.read_text()) + cached)

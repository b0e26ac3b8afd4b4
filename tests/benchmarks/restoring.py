"""`python -m tests.benchmarks.restoring MODEL IMAGE OUTPUT TILE STEPS`: restore one image.

Run in a process of its own, which starts and has memory as a user's does; Linux only. TILE and
STEPS are JSON, as `Restorer` takes them. The model `full` is of the published size, with random
weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image

from datamodules.degradations import WORDS
from modules.clip.daclip import build_daclip
from modules.clip.encoder import DaClipEncoder
from modules.diffusion.prediction import from_sample
from modules.diffusion.schedule import make_noise_schedule
from modules.inference.restore import Denoiser
from modules.networks.unet import ConditionalUNet
from pipeline.restore.api import Restorer

FULL = "full"


def main() -> None:
    """Restore it, and write megabytes and seconds to standard output."""
    model, image, output, tile, steps = sys.argv[1:]
    restorer = full_size() if model == FULL else Restorer.from_pretrained(model or None)
    found = restorer(Path(image), tile=json.loads(tile), steps=json.loads(steps))
    assert isinstance(found.image, Image.Image)
    found.image.save(output)
    on_gpu = restorer.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else _resident()
    json.dump({"peak": peak, "seconds": found.seconds, "tiles": found.tiles}, sys.stdout)


def full_size() -> Restorer:
    """Networks of the published size, with random weights, on a GPU."""
    network = ConditionalUNet().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    denoiser = Denoiser(network, make_noise_schedule(), from_sample)
    sampling = {"name": "posterior", "eta": 0.0, "num_steps": 8, "timestep_spacing": "uniform"}
    controller = DaClipEncoder(build_daclip("ViT-B-32"), WORDS)
    return Restorer(controller, denoiser, sampling, device="cuda", precision="bfloat16")


def _resident() -> float:
    """The most memory that the process has had, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM:")) * 1024 / 1e6


if __name__ == "__main__":
    main()

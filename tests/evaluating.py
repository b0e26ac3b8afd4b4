"""What tests of the evaluation start from: pairs in folders, small untrained models, rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from modules.clip.daclip import DaClip, build_daclip
from modules.clip.encoder import DaClipEncoder
from modules.networks.unet import ConditionalUNet
from pipeline.config import Config
from pipeline.evaluation.rows import Row
from pipeline.models.publish import export
from pipeline.models.store import save_controller, save_restorer
from pipeline.stages.train_restorer import ProcessConfig
from pipeline.training.sections import RestorerConfig
from tests.conftest import photograph

WORDS = ("hazy", "noisy", "rainy")
ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 64,
        "head_width": 64,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
UNET = {
    "name": "unet",
    "width": 32,
    "multipliers": [1, 1],
    "context_dim": 32,
}


def save_pairs(
    root: Path, names: Sequence[str], sides: tuple[int, int] = (40, 48), clean: bool = True
) -> Path:
    """Pairs of pictures of a height and width, named TASK/NAME, below ROOT/TASK/{LQ,GT}."""
    for seed, name in enumerate(names):
        task, stem = name.split("/")
        for kind, other in (("LQ", 100), *([("GT", 0)] if clean else [])):
            path = root / task / kind / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph(*sides, seed + other)).save(path)
    return root


def save_outputs(root: Path, names: Sequence[str], sides: tuple[int, int] = (40, 48)) -> Path:
    """What another method has made, as ROOT/NAME.png."""
    for seed, name in enumerate(names):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(*sides, seed + 200)).save(path)
    return root


def tiny_daclip() -> DaClip:
    """Untrained, but with control signals that are not zero."""
    torch.manual_seed(0)
    daclip = build_daclip(ARCHITECTURE)
    for parameter in daclip.controller.zero_linears.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return daclip


def tiny_unet() -> ConditionalUNet:
    """Untrained, but with conditions that have an effect."""
    torch.manual_seed(1)
    network = ConditionalUNet(**{k: v for k, v in UNET.items() if k != "name"})
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def save_models(config: Config, folder: Path) -> tuple[Path, Path]:
    """Files of a small controller and a small restorer that was trained with it."""
    controller, restorer = folder / "controller.safetensors", folder / "restorer.safetensors"
    save_controller(controller, DaClipEncoder(tiny_daclip(), WORDS), ARCHITECTURE)
    about = {
        "network": UNET,
        "prediction_type": config[RestorerConfig].prediction_type,
        "process": config[ProcessConfig].model_dump(),
    }
    save_restorer(restorer, tiny_unet(), about, controller)
    return controller, restorer


def row(
    method: str,
    task: str,
    name: str,
    psnr: float,
    found: str | None = None,
    dataset: str = "set",
    **scores: float,
) -> Row:
    """A row with a score or two."""
    return Row(
        method=method,
        dataset=dataset,
        task=task,
        name=name,
        scores={"psnr_rgb_border4": psnr, "ssim_rgb_border4": psnr / 100} | scores,
        missing={},
        found=found,
        probability=0.5 if found else None,
        seconds=2.0 if found else None,
        calls=5 if found else None,
        peak_mb=100.0 if found else None,
    )


def save_model_folder(config: Config, folder: Path) -> Path:
    """A model folder as `make export` writes it, of two calls an image."""
    run = folder / "run"
    for path in save_models(config, folder):
        (run / path.stem).mkdir(parents=True)
        path.rename(run / path.stem / "model.safetensors")
    sampler = "sampler: {name: posterior, eta: 0, num_steps: 2, timestep_spacing: uniform}\n"
    (run / "restorer" / "config.yaml").write_text(sampler)
    export(run, folder / "model")
    return folder / "model"

"""Trained models on disk: safetensors whose metadata say what to build; nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from hydra.utils import get_object
from torch import Tensor, nn

from datamodules.files import atomic_write, file_hash
from modules.daclip import DaClip, build_daclip
from modules.prediction import parameterisation
from modules.restorer import Controller, Denoiser
from modules.sde import make_tables
from pipeline.config import RestorerConfig, SdeConfig

FORMAT = "daclip-lightning/1"
NETWORK_PACKAGE = "modules."
"""Where a network named in a file may come from."""


class BadModel(ValueError):
    """A model file that cannot be used; the message names it and says why."""


def save_controller(path: Path, daclip: DaClip, architecture: Any, words: tuple[str, ...]) -> None:
    """Save a trained DA-CLIP, whole."""
    _save(path, daclip, "controller", {"architecture": architecture, "words": words})


def load_controller(path: Path) -> Controller:
    """Load a trained DA-CLIP.

    Raises:
        BadModel: the file is missing, damaged, or of another kind or architecture.
    """
    about, tensors = _load(path, "controller")
    daclip = build_daclip(about["architecture"])
    _fill(daclip, tensors, path)
    return Controller(daclip, about["words"])


def save_restorer(
    path: Path,
    network: nn.Module,
    sde: SdeConfig,
    restorer: RestorerConfig,
    controller: Path,
) -> None:
    """Save a trained network with its SDE, its target and the controller it was trained with."""
    about = {
        "network": restorer.network,
        "target": restorer.target,
        "sde": asdict(sde),
        "controller_sha256": file_hash(controller),
    }
    _save(path, network, "restorer", about)


def load_restorer(path: Path, controller: Path) -> Denoiser:
    """Load a trained restorer network.

    Raises:
        BadModel: the file is missing, damaged, of another kind or architecture, or was trained
            with another controller.
    """
    about, tensors = _load(path, "restorer")
    if about["controller_sha256"] != file_hash(controller):
        raise BadModel(f"{path} was trained with another controller than {controller}")
    network = build_network(about["network"])
    _fill(network, tensors, path)
    network.eval().requires_grad_(False)
    return Denoiser(network, make_tables(**about["sde"]), parameterisation(about["target"]))


def build_network(node: Mapping[str, Any]) -> nn.Module:
    """Make a restorer network, in the memory format its convolutions are fastest in.

    Raises:
        BadModel: its class is not one of ours.
    """
    target = str(node["_target_"])
    kind = get_object(target) if target.startswith(NETWORK_PACKAGE) else None
    # A name may lead through one of our modules to anything it imports, hence the second look;
    # and the arguments are plain values: a `_target_` among them is not followed.
    if (
        not isinstance(kind, type)
        or not issubclass(kind, nn.Module)
        or not kind.__module__.startswith(NETWORK_PACKAGE)
    ):
        raise BadModel(f"network {target!r} is no network class of {NETWORK_PACKAGE}*")
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    network: nn.Module = kind(**arguments)
    return network.to(memory_format=torch.channels_last)


def _save(path: Path, module: nn.Module, kind: str, about: Mapping[str, Any]) -> None:
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()
    }
    metadata = {"format": FORMAT, "kind": kind, "about": json.dumps(about)}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def _load(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise BadModel(f"no model {path}; train it first (`make train-{kind}`)")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise BadModel(f"{path} is not a whole safetensors file ({error})") from error
    if metadata.get("format") != FORMAT or metadata.get("kind") != kind:
        found = f"{metadata.get('format', 'unknown format')} {metadata.get('kind', '')}".strip()
        raise BadModel(f"{path} is no {kind} of ours ({FORMAT}), but: {found}")
    return json.loads(metadata["about"]), tensors


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wrong := [n for n in sorted(expected | found) if expected.get(n) != found.get(n)]:
        name = wrong[0]
        raise BadModel(
            f"{path} is of another architecture: {len(wrong)} tensors differ, the first is "
            f"{name}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}"
        )
    module.load_state_dict(tensors)

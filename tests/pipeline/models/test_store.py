"""A network named in a model file is one of our classes, and nothing it names is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.clip.daclip import build_daclip
from modules.clip.encoder import DaClipEncoder
from modules.networks.unet import ConditionalUNet
from pipeline.config import Config
from pipeline.models.store import (
    FORMAT,
    BadModel,
    build_network,
    load_controller,
    load_restorer,
    save_controller,
    start_from,
)
from tests.evaluating import ARCHITECTURE, save_models, tiny_unet
from tests.evaluating import UNET as SAVED

UNET = {"_target_": "modules.networks.unet.ConditionalUNet", "width": 32, "multipliers": [1, 1]}


def test_own_network_is_built() -> None:
    assert isinstance(build_network(UNET), ConditionalUNet)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "modules.inference.restore.torch.hub.load",
        "modules.captioning.blip.Path",
        "torch.nn.Linear",
    ],
)
def test_anything_else_is_refused(target: str) -> None:
    with pytest.raises(BadModel, match="is none of unet"):
        build_network({"_target_": target})


def test_target_among_the_arguments_is_not_executed(tmp_path: Path) -> None:
    made = tmp_path / "made"
    nested = {"_target_": "os.mkdir", "path": str(made)}
    with pytest.raises((TypeError, ValueError)):
        build_network(UNET | {"width": nested})
    assert not made.exists()


def test_training_starts_from_a_trained_restorer(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    _, restorer = save_models(tiny_config(), tmp_path)
    network = build_network(SAVED)
    start_from(restorer, network)
    expected = tiny_unet().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    with pytest.raises(BadModel, match="another architecture"):
        start_from(restorer, build_network({**SAVED, "width": 64}))


def test_training_starts_from_a_trained_controller(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    controller, restorer = save_models(tiny_config(), tmp_path)
    trained = load_controller(controller).daclip
    torch.manual_seed(1)
    daclip = build_daclip(ARCHITECTURE)
    start_from(controller, daclip)
    expected = trained.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in daclip.state_dict().items())
    with pytest.raises(BadModel, match="neither a controller"):
        start_from(restorer, daclip)


def test_a_controller_is_loaded_with_the_windows_it_looks_in(tmp_path: Path) -> None:
    path = tmp_path / "controller.safetensors"
    made = DaClipEncoder(build_daclip(ARCHITECTURE), ("hazy", "noisy"), crops_per_side=3)
    save_controller(path, made, ARCHITECTURE)
    found = load_controller(path)
    assert (found.words, found.crops_per_side) == (("hazy", "noisy"), 3)


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("controller", "{"),
        ("controller", "[]"),
        ("controller", "5"),
        ("controller", "{}"),
        ("controller", '{"architecture": {}, "words": ["noisy"]}'),
        ("controller", '{"architecture": 7, "words": ["noisy"]}'),
        ("controller", '{"architecture": ARCHITECTURE, "words": ["noisy"]}'),
        ("restorer", "{}"),
        ("restorer", '{"network": []}'),
        ("restorer", '{"network": {"_target_": "os.system"}}'),
        ("restorer", '{"network": {}, "sde": {}, "target": "data"}'),
        ("restorer", '{"network": NETWORK, "sde": {"T": "a"}, "target": "data"}'),
        ("restorer", '{"network": NETWORK, "sde": {}, "target": "magic"}'),
    ],
)
def test_file_that_says_of_itself_what_cannot_be_is_named(
    kind: str, about: str, tmp_path: Path
) -> None:
    path, controller = tmp_path / "odd.safetensors", tmp_path / "controller.safetensors"
    controller.touch()
    about = about.replace("NETWORK", json.dumps(SAVED))
    about = about.replace("ARCHITECTURE", json.dumps(dict(ARCHITECTURE) | {"embed_dim": -4}))
    metadata = {"format": FORMAT, "kind": kind, "about": about}
    save_file(tiny_unet().state_dict(), path, metadata)
    with pytest.raises(BadModel, match=re.escape(str(path))):
        load_controller(path) if kind == "controller" else load_restorer(path, controller)

"""A network of the user's own package trains; a file may name it only where it is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import BadModel
from pipeline.models.hub import find_model
from pipeline.models.store import ALLOWED, load_pair
from tests.conftest import command

NETWORK = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(6, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x_t, mu, t, degradation, content):
        return self.layers(torch.cat([x_t - mu, mu], dim=1))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package with a network that says nothing of itself."""
    (tmp_path / "site" / "somebodys").mkdir(parents=True)
    (tmp_path / "site" / "somebodys" / "__init__.py").write_text(NETWORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return "somebodys"


@pytest.mark.slow
def test_own_network_trains_and_is_evaluated(finished: Path, package: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    given = [
        override
        for override in command(run, "run")[4:]
        if not override.startswith(("network.", "sampler.eta"))
    ]
    node = f"network={{_target_: {package}.Plain, width: 4}}"
    work = [sys.executable, "-m", "pipeline", "run", *given, node]
    result = subprocess.run(work, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

    files = find_model(run)
    with pytest.raises(BadModel, match=r"'somebodys\.Plain' is none of unet, nor of a package"):
        load_pair(files.controller, files.restorer)
    _, denoiser = load_pair(files.controller, files.restorer, allow=[package])
    assert type(denoiser.network).__name__ == "Plain"


def test_environment_allows_packages(
    finished: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models.store import build_network

    monkeypatch.setenv(ALLOWED, package)
    assert type(build_network({"_target_": f"{package}.Plain"})).__name__ == "Plain"
    with pytest.raises(BadModel, match=r"os\.system"):
        build_network({"_target_": "os.system"})

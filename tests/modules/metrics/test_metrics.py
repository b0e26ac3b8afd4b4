"""The registry: a metric is a file, and importing the package stays light."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torchvision.models import AlexNet_Weights

from modules.metrics import METRICS, find_weights, register


def test_weights_are_listed_without_torch() -> None:
    code = "import sys, modules.metrics as m; m.find_weights(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "environment", [{}, {"XDG_CACHE_HOME": "/caches"}, {"TORCH_HOME": "~/of torch"}]
)
def test_weights_are_where_torch_and_the_libraries_have_them(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, url in (
        ("lpips_alex", AlexNet_Weights.IMAGENET1K_V1.url),
        ("fid", URL_INCEPTION_V3),
    ):
        weights = METRICS[name].weights
        assert weights is not None and weights.url == url
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        assert weights.path == folder / url.split("/")[-1]


def test_only_weights_that_are_there_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert find_weights() == []
    weights = METRICS["niqe"].weights
    assert weights is not None
    weights.path.parent.mkdir(parents=True)
    weights.path.write_bytes(b"any")
    assert find_weights() == [weights.path]


@pytest.mark.parametrize("change", [{"name": "other"}, {"short": "other"}])
def test_a_name_or_short_name_that_is_taken_is_refused(change: dict[str, str]) -> None:
    before = list(METRICS)
    with pytest.raises(ValueError, match=r"'niqe'.* has this name already"):
        register(replace(METRICS["niqe"], **change))  # type: ignore[arg-type]
    assert list(METRICS) == before

"""The examples of CONTRIBUTING.md, added to a copy of the project, do what the page says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY_RUN

ROOT = Path(__file__).parents[1]
EXAMPLE = re.compile(r"```(?:python|yaml)\n# (append to )?(\S+)\n(.*?)```", re.DOTALL)
CHECKS = """
import numpy as np, torch
from datamodules.degradations import WORDS, degrade
from modules.inference.restore import make_sampling
from modules.metrics import METRICS
from modules.networks import build_network, describe
from modules.reference.released import REFERENCE_WORDS
from pipeline.compose import load_config
from pipeline.evaluation.published import RECOGNISED
from pipeline.sections import SamplerConfig

clean = np.full((40, 48, 3), 20, np.uint8)
assert "foggy" in WORDS and degrade("foggy", clean, 0).mean() > 60
assert "foggy" not in REFERENCE_WORDS and "foggy" not in RECOGNISED and len(RECOGNISED) == 10

config = load_config(["experiment=demo", "network=plain", "sampler=renoise"])
network = build_network(config.network)
x = torch.rand(1, 3, 16, 16)
assert network(x, x, 3).shape == x.shape and not describe(network).uses_prompt
sampler = make_sampling(**config[SamplerConfig].model_dump()).sampler
assert type(sampler).__name__ == "RenoiseSampler"

score = METRICS["mae_rgb"].load(torch.device("cpu"))
assert score(clean + 3, clean) == 3.0
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with every example in its place."""
    copy = tmp_path_factory.mktemp("extended")
    for package in ("conf", "datamodules", "modules", "pipeline"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    found = EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(found) == 10
    for append, name, text in found:
        path = copy / name
        assert path.is_file() == bool(append), name
        path.write_text((path.read_text() + "\n\n" if append else "") + text)
    chain = copy / "pipeline" / "chain.py"
    chain.write_text(
        chain.read_text()
        .replace("import captions,", "import captions, count,")
        .replace("for module in (shards,", "for module in (shards, count,")
    )
    return copy


def work(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


def test_examples_are_found_by_their_names(extended: Path) -> None:
    work(extended, "-c", CHECKS)


def test_dataset_and_stage_run(extended: Path, pair_folder: Path, tmp_path: Path) -> None:
    lines = ["split,word,lq,gt"]
    for path in sorted(pair_folder.rglob("LQ/*.png")):
        lq = path.relative_to(tmp_path)
        gt = Path(str(lq).replace("LQ", "GT"))
        lines.append(f"{lq.parts[1]},{lq.parts[2]},{lq},{gt}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    tiny = [setting for setting in TINY_RUN if not setting.startswith("shards.")]
    table = ["source=table", f"shards.source.table={tmp_path / 'pairs.csv'}"]
    command = [
        "-m",
        "pipeline",
        "run",
        "--upto",
        "count",
        *tiny,
        *table,
        f"run_dir={tmp_path / 'run'}",
    ]
    work(extended, *command)
    counts = (tmp_path / "run" / "counts" / "counts.json").read_text()
    assert '"noisy": 3' in counts and '"rainy": 3' in counts
    assert "counts: fresh" in work(extended, *command).stdout


def test_examples_pass_the_linter(extended: Path) -> None:
    for name in ("pyproject.toml",):
        shutil.copy(ROOT / name, extended / name)
    work(extended, "-m", "ruff", "check", ".")
    work(extended, "-m", "ruff", "format", "--check", ".")

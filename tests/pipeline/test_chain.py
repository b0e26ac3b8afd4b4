"""The chain in one process: fresh stages cost no heavy import, queries fetch nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from pipeline import chain
from pipeline.config import Config
from pipeline.slurm.status import status
from tests.conftest import command

MakeConfig = Callable[..., Config]
HEAVY = ("torch", "lightning", "open_clip", "transformers", "requests", "fsspec", "huggingface_hub")
PROBE = f"""
import sys
from pipeline.__main__ import main
status = main()
print("imported:", *sorted(set({HEAVY}) & set(sys.modules)))
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.parametrize("word", ["run", "status"])
def test_what_is_fresh_is_told_without_heavy_imports(finished: Path, word: str) -> None:
    work = [sys.executable, "-c", PROBE, *command(finished, word)[3:]]
    result = subprocess.run(work, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("fresh") == 5
    assert result.stdout.splitlines()[-1] == "imported:"


def test_a_query_fetches_no_model(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*args: object, **kwargs: object) -> str:
        raise AssertionError("fetched")

    monkeypatch.setenv("DACLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    lines = status(tiny_config("evaluate.pretrained=universal-ir"))
    assert [line.split()[0] for line in lines] == list(chain.STAGES)
    assert "fresh" not in " ".join(lines)


def test_chain_ends_with_the_first_stage_that_fails(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$3" >>{tmp_path}/called\n[ "$3" != shards ] || exit 3\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert chain.run_chain(tiny_config(), "evaluate") == 3
    assert (tmp_path / "called").read_text().split() == ["shards"]


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ([], list(chain.STAGES)),
        (["evaluate.pretrained=shipped"], ["shards", "evaluate"]),
        (["evaluate.pretrained=shipped", "evaluate.data=somewhere"], ["evaluate"]),
        (["evaluate.model=false", "evaluate.data=somewhere"], ["evaluate"]),
    ],
)
def test_only_what_is_read_is_needed(
    tiny_config: MakeConfig, overrides: list[str], needed: list[str]
) -> None:
    assert chain.chain(tiny_config(*overrides), "evaluate") == needed

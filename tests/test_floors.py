"""Layers below the pipeline speak of parameters; only the pipeline knows keys and commands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("datamodules",)


def dotted_keys(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, child in node.items():
            key = f"{prefix}.{name}" if prefix else str(name)
            yield key
            yield from dotted_keys(child, key)


def configuration_keys() -> set[str]:
    conf = ROOT / "conf"
    keys = set(dotted_keys(yaml.safe_load((conf / "config.yaml").read_text()), ""))
    for file in (conf / "source").glob("*.yaml"):
        keys |= set(dotted_keys(yaml.safe_load(file.read_text()), "shards.source"))
    keys |= {f"captions.captioner.{name}" for name in ("_target_", "model", "path")}
    return {key for key in keys if "." in key and not key.startswith(("hydra.", "defaults"))}


def make_targets() -> list[str]:
    return re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_names_neither_configuration_keys_nor_make_targets(package: str) -> None:
    keys, targets = configuration_keys(), make_targets()
    assert "restorer.patch_size" in keys and "shards.source.root" in keys and "shards" in targets
    named = "|".join(map(re.escape, keys))
    commands = "|".join(map(re.escape, targets))
    forbidden = re.compile(rf"(?<![\w.])(?:{named})(?![\w])|`make (?:{commands})\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if forbidden.search(line)
    ]
    assert not found, "\n".join(found)

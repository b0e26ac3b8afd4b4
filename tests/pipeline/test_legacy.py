"""Records of stages that were made before some names changed."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.compose import load_config
from pipeline.config import Config
from pipeline.legacy import current_record
from pipeline.stages.captions import CaptionsConfig


def captioner(*settings: str) -> Any:
    config: Config = load_config(["run_dir=x", *settings])
    return config[CaptionsConfig].captioner


@pytest.mark.parametrize(
    ("before", "settings"),
    [
        ({"_target_": "pipeline.written.demo_captions"}, ["captioner=demo"]),
        ({"_target_": "pipeline.written.photos_captions"}, ["captioner=photos"]),
        (
            {"_target_": "pipeline.written.captions_from_file", "path": "a.csv"},
            ["captioner=file", "captions.captioner.path=a.csv"],
        ),
        (
            {"_target_": "pipeline.written.CaptionsOfRun", "path": "a.jsonl"},
            ["captioner=run", "captions.captioner.path=a.jsonl"],
        ),
    ],
)
def test_captions_made_before_are_of_the_same_captioner(
    before: dict[str, str], settings: list[str]
) -> None:
    record = current_record({"config": {"captions": {"captioner": before, "batch_size": 8}}})
    assert record["config"]["captions"]["captioner"] == dict(captioner(*settings))


@pytest.mark.parametrize("name", ["blip", "demo"])
def test_a_captioner_of_ones_own_replaces_the_whole_node(name: str) -> None:
    own = "captions.captioner={_target_: tests.captioning.Slow}"
    assert captioner(f"captioner={name}", own) == {"_target_": "tests.captioning.Slow"}

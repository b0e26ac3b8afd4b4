"""The remedy that a user is told of, with the full key of the setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.errors import TooManyBadSamples
from datamodules.mixture import Mixture
from datamodules.shards.index import read_index
from datamodules.shards.writer import Format
from datamodules.sources.benchmarks import Benchmarks
from datamodules.sources.folder import PairFolder
from pipeline.config import ConfigError, build
from pipeline.errors import KEYS, REMEDIES, message


def folder(root: Path) -> PairFolder:
    return PairFolder(str(root), ["train"], None, [], seed=0)


def told(call: object) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        call()  # type: ignore[operator]
    return message(caught.value)


def test_parameters_are_named_by_their_full_key(tmp_path: Path) -> None:
    assert told(lambda: Format("gif", None, 1.0)).startswith("shards.format.encoding='gif'")
    assert told(lambda: Mixture({"hazy": [1]}, 0, {"hazy": 0})).startswith("data.task_weights ")
    assert "shards.source.datasets: unknown 'x'" in told(Benchmarks("", {"x": None}, 0).plan)
    node = {"_target_": "datamodules.sources.existing.ExistingShards", "url": "", "cache_dir": ""}
    with pytest.raises(ConfigError, match=r"shards\.source\.shuffle_window=0: give 1 or more"):
        build(node | {"cache_gb": 1.0, "shuffle_window": 0})


def test_remedies_follow_the_fault(tmp_path: Path) -> None:
    assert told(lambda: read_index(tmp_path)).endswith("index.json. Run `make shards` first")
    assert "leave it out of shards.source.splits" in told(folder(tmp_path).plan)
    (tmp_path / "train/hazzy").mkdir(parents=True)
    assert "'hazzy'; known words: hazy" in told(folder(tmp_path).plan)
    assert "list your own words in shards.source.words" in told(folder(tmp_path).plan)
    (tmp_path / "train/hazzy").rename(tmp_path / "train/hazy")
    (tmp_path / "train/hazy/GT").mkdir()
    (tmp_path / "train/hazy/GT/a.png").touch()
    assert "add the word to shards.source.synthetic" in told(folder(tmp_path).plan)
    lol = Benchmarks(str(tmp_path), {"lol": "auto"}, 0)
    assert told(lol.plan).endswith("leave it out with ~shards.source.datasets.NAME")


def test_errors_of_data_processes_keep_their_remedy() -> None:
    error = TooManyBadSamples(
        "Caught TooManyBadSamples in worker.\nOriginal Traceback:\n  x\n"
        "datamodules.errors.TooManyBadSamples: 20 in a row\n"
    )
    assert message(error).startswith("20 in a row. Mend the data")


def test_each_error_is_made_from_its_message_alone() -> None:
    assert all(str(kind("text")) == "text" for kind in {**KEYS, **REMEDIES})

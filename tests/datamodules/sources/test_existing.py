"""Shards that are ready, in a folder or behind a URL, train like those of the run itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread

import pytest
import torch

from datamodules.batch import Batch
from datamodules.shards import transport
from datamodules.shards.cache import ShardCache
from datamodules.shards.index import INDEX, BadShard, read_index
from datamodules.shards.writer import write_shards
from datamodules.sources.existing import ExistingShards
from pipeline.compose import load_config
from pipeline.stage import run_stage
from pipeline.stages.shards import STAGE as SHARDS
from tests.conftest import form, paired_folder
from tests.training_data import data_module


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BACKOFF_S", 0.001)


@pytest.fixture
def shards(pair_folder: Path, tmp_path: Path) -> Path:
    write_shards(paired_folder(pair_folder).plan(), tmp_path / "set", form(), 0.0, num_workers=0)
    return tmp_path / "set"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url(shards: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ready(url: str, cache: Path, window: int = 9) -> ExistingShards:
    return ExistingShards(url, str(cache), cache_gb=1.0, shuffle_window=window)


def training(folder: Path, workers: int = 0) -> list[Batch]:
    data = data_module(folder, val_batch_size=1, num_workers=workers)
    return list(islice(iter(data.train_dataloader()), 6))  # type: ignore[arg-type]


def assert_alike(one: list[Batch], other: list[Batch]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.key == b.key
        assert torch.equal(a.lq, b.lq)
        assert torch.equal(a.gt, b.gt)


@pytest.mark.parametrize("workers", [0, 2])
def test_far_shards_train_like_near_ones(
    shards: Path, url: str, tmp_path: Path, workers: int
) -> None:
    for number, place in enumerate([url, f"pipe:cat {shards}/{{name}}", str(shards)]):
        linked = tmp_path / f"linked{number}"
        ready(place, tmp_path / "cache").link(linked)
        assert (linked / INDEX).read_bytes() == (shards / INDEX).read_bytes()
        assert_alike(training(shards), training(linked, workers))
    fetched = list((tmp_path / "cache").rglob("*-train-*.tar"))
    assert len(fetched) == 2 * 4  # two far places, two words of two shards


def test_far_shards_are_drawn_a_window_at_a_time(shards: Path, url: str, tmp_path: Path) -> None:
    ready(url, tmp_path / "cache", window=1).link(tmp_path / "linked")
    keys = [key for batch in training(tmp_path / "linked") for key in batch.key]
    rainy = [key.split("/")[0] for key in keys if key.startswith("rainy")]
    assert len(rainy) == 12
    for epoch in range(4):  # three samples: two of one shard together, one of the other
        middle = rainy[3 * epoch + 1]
        assert middle in (rainy[3 * epoch], rainy[3 * epoch + 2])
        assert rainy[3 * epoch : 3 * epoch + 3].count(middle) == 2


def test_far_shards_that_another_process_evicts_are_fetched_again(
    shards: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard is gone when it is opened for the first time, for its table as for its samples."""
    ready(url, tmp_path / "cache").link(tmp_path / "linked")
    path, gone = ShardCache.path, set[tuple[str, str]]()

    def evicted(cache: ShardCache, name: str, size: int, sha256: str) -> Path:
        found = path(cache, name, size, sha256)
        caller, use = sys._getframe(1).f_code.co_name, sys._getframe(2).f_code.co_name
        if caller == "_fetched" and (name, use) not in gone:  # not where it is prefetched
            gone.add((name, use))
            found.unlink()
        return found

    monkeypatch.setattr(ShardCache, "path", evicted)
    assert_alike(training(shards), training(tmp_path / "linked"))
    assert {use for _, use in gone} == {"open", "_read_table"}


def test_stage_links_and_stays_fresh_until_the_index_changes(
    shards: Path, pair_folder: Path, tmp_path: Path
) -> None:
    settings = ["source=existing", f"shards.source.url={shards}", f"run_dir={tmp_path / 'run'}"]
    config = load_config(settings)
    run_stage(SHARDS, config)
    record = SHARDS.folder(config) / "stage.json"
    assert len(read_index(SHARDS.folder(config))) == 6
    before = record.stat().st_mtime_ns
    run_stage(SHARDS, config)
    assert record.stat().st_mtime_ns == before
    shutil.rmtree(shards)
    (pair_folder / "train/noisy/LQ/noisy0.png").unlink()
    write_shards(paired_folder(pair_folder).plan(), shards, form(), 0.0, num_workers=0)
    run_stage(SHARDS, config)
    assert sum(shard.count for shard in read_index(SHARDS.folder(config))) == 7


def test_missing_set_is_named(url: str, tmp_path: Path) -> None:
    for place in (f"{url}/nowhere", str(tmp_path / "nowhere"), "pipe:false {name}"):
        with pytest.raises(OSError, match=r"nowhere|false"):
            ready(place, tmp_path / "cache").link(tmp_path / "linked")
        assert not (tmp_path / "linked" / INDEX).exists()


def test_page_that_is_no_index_is_named(shards: Path, url: str, tmp_path: Path) -> None:
    (shards / INDEX).write_text("<html>sign in</html>")
    with pytest.raises(ValueError, match=rf"index\.json of {url} is no JSON"):
        ready(url, tmp_path / "cache").link(tmp_path / "linked")


def test_shard_replaced_at_its_place_is_named(shards: Path, url: str, tmp_path: Path) -> None:
    ready(str(shards), tmp_path / "cache").link(tmp_path / "near")
    ready(url, tmp_path / "cache").link(tmp_path / "far")
    shard = shards / "noisy-train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(BadShard, match=r"noisy-train-000000\.tar: \d+ bytes, the index says"):
        training(tmp_path / "near")
    with pytest.raises(OSError, match=r"noisy-train-000000\.tar"):
        training(tmp_path / "far")

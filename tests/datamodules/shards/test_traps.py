"""Each trap of plain WebDataset, sprung on small data, and the same data read by us."""

from __future__ import annotations

import gc
import io
import random
import subprocess
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader, DistributedSampler

from datamodules.augment import RandomPatch
from datamodules.datamodule import RestorationDataModule
from datamodules.dataset import EvalDataset, TrainDataset, load_whole
from datamodules.files import write_json
from datamodules.images import BadImage, read_image
from datamodules.mixture import DistributedEvalSampler, Mixture, TrainSampler
from datamodules.shards.index import INDEX, BadShard, read_index
from datamodules.shards.reader import ShardSet
from datamodules.shards.store import ShardLocation
from datamodules.sources.existing import ExistingShards
from tests.conftest import paired_folder
from tests.samples import many, write
from tests.training_data import data_module

pytestmark = pytest.mark.filterwarnings("ignore:WebDataset:UserWarning")

Save = Callable[..., Path]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four training shards of three samples of one task, and one for validation."""
    samples = [*many("train", "rainy", 12), *many("val", "rainy", 12)]
    write(tmp_path / "shards", samples[:12] + samples[12:], per_shard=3)
    return tmp_path / "shards"


def urls(folder: Path, split: str = "train") -> list[str]:
    return [str(path) for path in sorted(folder.glob(f"*-{split}-*.tar"))]


def plain(source: Any, **settings: Any) -> Any:
    """The stream of a plain user."""
    return webdataset.WebDataset(source, **({"shardshuffle": False} | settings))


def keys(stream: Iterable[Any], count: int | None = None) -> list[str]:
    return [sample["__key__"] for sample in islice(iter(stream), count)]


def draws(folder: Path, **changes: Any) -> TrainDataset:
    """Our training samples by the number of the draw."""
    found = ShardSet(folder, "train")
    settings: dict[str, Any] = {"seed": 0} | changes
    mixture = Mixture({word: samples.counts for word, samples in found.tasks.items()}, **settings)
    return TrainDataset(found, None, mixture, RandomPatch(16), with_clean=True)


def drawn(dataset: TrainDataset, numbers: Iterable[int]) -> list[str]:
    return [dataset[n].sample.key.partition("/")[2] for n in numbers]


def module(folder: Path, num_workers: int, batch_size: int = 4) -> RestorationDataModule:
    return data_module(
        folder, batch_size=batch_size, val_batch_size=batch_size, num_workers=num_workers
    )


def batches(loader: Any, count: int | None = None) -> list[list[str]]:
    return [[key.partition("/")[2] for key in batch.key] for batch in islice(iter(loader), count)]


def fault(read: Callable[[], object], kind: type[Exception]) -> Exception:
    """What reading raises. Its frames are let go of, and with them the loader's workers, since
    PyTorch waits five seconds for workers that it finds after others were forked."""
    with pytest.raises(kind) as caught:
        read()
    error: Exception = caught.value.with_traceback(None)
    del caught
    gc.collect()
    return error


def tar(path: Path, members: Iterable[tuple[str, bytes]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def test_1_keys_with_dots_merge(tmp_path: Path, save_image: Save) -> None:
    names = ("0048_0.9_0.2", "0048_0.9_0.16")
    for split in ("train", "val"):
        for seed, name in enumerate(names):
            save_image(f"pairs/{split}/hazy/GT/{name}.png", seed=seed)
            save_image(f"pairs/{split}/hazy/LQ/{name}.png", seed=seed + 5)
    folder = tmp_path / "pairs" / "train" / "hazy" / "LQ"
    together = tar(
        tmp_path / "plain.tar", [(f"{n}.png", (folder / f"{n}.png").read_bytes()) for n in names]
    )
    assert keys(plain(together)) == ["0048_0"]

    write(tmp_path / "shards", paired_folder(tmp_path / "pairs").plan())
    samples = [load_whole(a) for a in ShardSet(tmp_path / "shards", "train").all()]
    assert {sample.source for sample in samples} == {f"train/hazy/GT/{n}.png" for n in names}
    for sample in samples:
        assert np.array_equal(sample.lq, read_image(folder / Path(sample.source).name))


def test_2_the_seed_is_ignored(shards: Path) -> None:
    first, second = (plain(urls(shards), resampled=True, seed=1) for _ in range(2))
    assert keys(first, 60) != keys(second, 60)

    ours = [drawn(draws(shards, seed=seed), range(60)) for seed in (1, 1, 2)]
    assert ours[0] == ours[1] != ours[2]


def test_3_every_epoch_is_the_same(shards: Path) -> None:
    seeded = plain(urls(shards), shardshuffle=4, detshuffle=True, seed=3)
    loader = DataLoader(seeded, batch_size=None, num_workers=1)
    assert keys(loader) == keys(loader) == keys(loader)
    unseeded = plain(urls(shards), shardshuffle=4)
    assert keys(unseeded) == keys(unseeded) == keys(unseeded)

    seen = [key for batch in batches(module(shards, 2).train_dataloader(), 9) for key in batch]
    epochs = [tuple(seen[start : start + 12]) for start in (0, 12, 24)]
    assert len(set(epochs)) == 3
    assert all(len(set(epoch)) == 12 for epoch in epochs)


def test_4_more_workers_than_shards(tmp_path: Path) -> None:
    write(tmp_path, [*many("train", "rainy", 7), *many("val", "rainy", 7)])
    assert len(urls(tmp_path, "val")) == 1
    loader = DataLoader(plain(urls(tmp_path, "val")), batch_size=None, num_workers=3)
    assert "fewer shards than workers" in str(fault(lambda: keys(loader), ValueError))
    unsplit = plain(urls(tmp_path, "val"), workersplitter=None)
    twice = Counter(keys(DataLoader(unsplit, batch_size=None, num_workers=2)))
    assert set(twice.values()) == {2}

    seen = Counter(k for b in batches(module(tmp_path, 3).val_dataloader()) for k in b)
    assert len(seen) == 7
    assert set(seen.values()) == {1}
    assert len(batches(module(tmp_path, 3).train_dataloader(), 5)) == 5


def test_4_several_ranks(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="nodesplitter"):
        keys(plain(urls(shards)))

    dataset = draws(shards)
    ranks = [drawn(dataset, islice(TrainSampler(0, rank, 2), 6)) for rank in range(2)]
    assert [key for pair in zip(*ranks, strict=True) for key in pair] == drawn(dataset, range(12))


def boundaries(path: Path) -> dict[str, int]:
    """Where the first shard may be cut: its second sample's first member is at `sample`."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    second, fourth = members[1], members[3]
    return {
        "inside a header": second.offset + 300,
        "between header and data": second.offset_data,
        "inside data": second.offset_data + 5,
        "at a member": second.offset,
        "at a sample": fourth.offset,
    }


@pytest.mark.parametrize("place", ["inside data", "inside a header", "at a member", "at a sample"])
@pytest.mark.parametrize("unlisted", [False, True], ids=["", "the index agreeing"])
def test_5_truncated_tar(shards: Path, place: str, unlisted: bool) -> None:
    path = Path(urls(shards)[0])
    cut = boundaries(path)[place]
    path.write_bytes(path.read_bytes()[:cut])
    partial = list(plain(str(path), handler=webdataset.ignore_and_continue))
    if place == "at a sample":
        assert len(partial) == 1  # of three, without a word
    else:
        assert not {"lq.npy", "gt.npy", "json"} <= set(partial[0])
    if place != "inside data":
        assert len(list(plain(str(path)))) == 1  # no error even where errors are to be raised

    if unlisted:
        listed = [replace(s, bytes=cut) if s.name == path.name else s for s in read_index(shards)]
        write_json(shards / INDEX, {"shards": [asdict(shard) for shard in listed]})
    with pytest.raises(BadShard, match=path.name):
        ShardSet(shards, "train")


def test_6_a_corrupt_image_is_not_named(tmp_path: Path) -> None:
    write(tmp_path, [*many("train", "rainy", 1), *many("val", "rainy", 9)], encoding="png")
    path = Path(urls(tmp_path, "val")[0])
    with tarfile.open(path) as archive:
        member = archive.getmember("rainy-val-007.lq.png")
    with path.open("r+b") as file:
        file.seek(member.offset_data + 60)
        file.write(b"\xff" * 500)
    loader = DataLoader(plain(str(path)).decode("rgb8"), batch_size=None, num_workers=1)
    lost: Any = fault(lambda: keys(loader), webdataset.autodecode.DecodingError)
    assert lost.key is None
    assert "rainy-val" not in f"{lost} {lost.url}"

    ours = module(tmp_path, num_workers=2, batch_size=1).val_dataloader()
    named = str(fault(lambda: batches(ours), BadImage))
    assert "rainy-val-000000.tar/rainy-val-007.lq.png: damaged" in named


def test_7_caches_confuse_files_of_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("rainy", "snowy"):
        tar(tmp_path / "far" / word / "000000.tar", [("sample.txt", word.encode())])
    monkeypatch.setenv("GOPEN_REWRITE", f"http://far/={tmp_path}/far/")  # no network is needed
    (tmp_path / "cache").mkdir()
    for word in ("rainy", "snowy"):
        cached = plain(f"http://far/{word}/000000.tar", cache_dir=str(tmp_path / "cache"))
        assert [sample["txt"] for sample in cached] == [b"rainy"]

    served = {}
    for number, name in enumerate(("one", "other")):
        train = [replace(s, key=f"{name}-{s.key}") for s in many("train", "rainy", 2 + number)]
        write(tmp_path / name, [*train, *many("train", "snowy", 1), *many("val", "rainy", 1)])
        url = f"pipe:cat {tmp_path / name}/{{name}}"
        ExistingShards(url, str(tmp_path / "shared"), 1.0, 4).link(tmp_path / f"{name}-link")
        tasks = ShardSet(tmp_path / f"{name}-link", "train").tasks
        served[name] = [load_whole(address).source for address in tasks["rainy"]]
    names = [shard.name for shard in read_index(tmp_path / "one")]
    assert len(set(names)) == 3
    assert names == [shard.name for shard in read_index(tmp_path / "other")]
    assert served == {
        "one": ["one-rainy-train-000.png", "one-rainy-train-001.png"],
        "other": [f"other-rainy-train-00{i}.png" for i in range(3)],
    }


def test_8_epochs_and_batches_depend_on_workers(shards: Path) -> None:
    epoch = plain(urls(shards)).with_epoch(6)
    assert len(keys(DataLoader(epoch, batch_size=None, num_workers=2))) == 12
    batched = plain(urls(shards)).to_tuple("__key__").batched(4)
    ragged = [len(names) for (names,) in DataLoader(batched, batch_size=None, num_workers=2)]
    assert sorted(ragged) == [2, 2, 4, 4]

    for split in ("train", "val"):
        seen = []
        for workers in (0, 2):
            data = module(shards, workers)
            loader = data.train_dataloader() if split == "train" else data.val_dataloader()
            seen.append(batches(loader, 3))
        assert seen[0] == seen[1]
        assert [len(batch) for batch in seen[0]] == [4, 4, 4]


def test_9_the_mix_is_equal_on_all_ranks_and_stops(tmp_path: Path) -> None:
    write(tmp_path, [*many("train", "rainy", 3), *many("train", "snowy", 40)])
    tasks = [[url for url in urls(tmp_path) if word in url] for word in ("rainy", "snowy")]
    ranks = []
    for _ in range(2):
        random.seed(0)  # as on every rank
        mix = webdataset.RandomMix([plain(task) for task in tasks])
        ranks.append([key.partition("-")[0] for key in keys(mix)])
    assert ranks[0] == ranks[1]
    assert len(ranks[0]) < 43

    dataset = draws(tmp_path)
    seen = [drawn(dataset, islice(TrainSampler(0, rank, 2), 100)) for rank in range(2)]
    words = [[key.partition("-")[0] for key in rank] for rank in seen]
    assert words[0] != words[1]
    assert Counter(words[0] + words[1]) == {"rainy": 100, "snowy": 100}
    assert len(set(seen[0] + seen[1])) == 43


def test_10_no_s3(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no gopen handler"):
        keys(plain("s3://bucket/rainy-train-000000.tar"))

    assert ShardLocation("s3://bucket/set").remote
    url = f"pipe:cat {shards}/{{name}}"  # as `aws s3 cp s3://bucket/set/{name} -`
    ExistingShards(url, str(tmp_path / "cache"), 1.0, 4).link(tmp_path / "far")
    far, near = draws(tmp_path / "far", window=4), draws(shards, window=4)
    assert drawn(far, range(24)) == drawn(near, range(24))


def _unclosed(read: Callable[[], object]) -> int:
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        read()
        gc.collect()
    return sum(issubclass(warning.category, ResourceWarning) for warning in caught)


def test_10_streams_are_left_open(shards: Path) -> None:
    assert _unclosed(lambda: keys(plain(urls(shards)))) == 4
    assert _unclosed(lambda: drawn(draws(shards), range(12))) == 0


def test_ddp_a_validation_sample_is_seen_twice(tmp_path: Path) -> None:
    numbers: Any = range(47)
    samplers: list[Any] = [DistributedSampler(numbers, 2, rank) for rank in range(2)]
    naive = [number for sampler in samplers for number in sampler]
    assert len(naive) == 48

    write(tmp_path, many("val", "rainy", 47), per_shard=10)
    dataset = EvalDataset(ShardSet(tmp_path, "val").all())
    items = [dataset[n] for rank in range(2) for n in DistributedEvalSampler(47, rank, 2)]
    seen = Counter(item.sample.key for item in items if item.valid)
    assert len(seen) == 47
    assert set(seen.values()) == {1}


def _rank(rank: int, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.naive_ranks", str(folder), str(rank)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_ddp_uneven_shards_deadlock(tmp_path: Path) -> None:
    """Ours, with such shards, is in test_two_ranks.py."""
    write(tmp_path, [*many("train", "rainy", 3), *many("train", "snowy", 11)])
    processes = [_rank(rank, tmp_path) for rank in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert "rank 0 has seen 3" in outputs[0]
    assert "rank 1 has seen 11" not in outputs[1]
    assert any("Timed out" in output for output in outputs), outputs

"""The mixture and the DataModule: equal shares, exact resume, every validation sample once."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.augment import Augment, RandomPatch, whole_image
from datamodules.batch import Batch, collate, collate_padded
from datamodules.captions import CAPTIONS, write_captions
from datamodules.datamodule import RestorationDataModule
from datamodules.dataset import TrainDataset
from datamodules.errors import TooManyBadSamples
from datamodules.images import BadImage, read_image
from datamodules.mixture import DistributedEvalSampler, Mixture, TrainSampler
from datamodules.shards.reader import ShardSet
from datamodules.shards.writer import write_shards
from tests.conftest import form, paired_folder
from tests.training_data import data_module

Save = Callable[..., Path]


@pytest.fixture
def shards(pair_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    write_shards(
        paired_folder(pair_folder).plan(), folder, form(encoding="png"), 0.0, num_workers=0
    )
    return folder


def spoil(shards: Path, name: str, key: str) -> None:
    """Overwrite the middle of a sample's degraded image inside its shard."""
    samples = ShardSet(shards, name.split("-")[1]).all()
    address = next(a for a in samples if a.name.endswith(f"/{key}"))
    offset, size, _ = address.store.table(address.shard)[address.row]["lq"].tolist()
    path = shards / address.store.shards[address.shard].name
    with path.open("r+b") as file:
        file.seek(offset + 8)
        file.write(b"\xff" * (size - 8))


def draws_of(shards: Path, augment: Augment, **changes: object) -> TrainDataset:
    found = ShardSet(shards, "train")
    mixture = Mixture({word: samples.counts for word, samples in found.tasks.items()}, 0)
    return TrainDataset(found, None, mixture, augment, **({"with_clean": True} | changes))  # type: ignore[arg-type]


def batches(data: RestorationDataModule, count: int) -> Iterator[Batch]:
    return islice(iter(data.train_dataloader()), count)  # type: ignore[arg-type]


def test_tasks_come_in_equal_shares_whatever_their_sizes() -> None:
    mixture = Mixture({"few": [2], "many": [60, 40], "some": [7]}, seed=0)
    assert Counter(mixture(n)[0] for n in range(300)) == {"few": 100, "many": 100, "some": 100}


def test_each_epoch_of_a_task_holds_every_sample_once_in_a_new_order() -> None:
    mixture = Mixture({"a": [5], "b": [50]}, seed=0)
    drawn = [position for word, position in map(mixture, range(400)) if word == "b"]
    first, second = drawn[:50], drawn[50:100]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_mixture_depends_on_its_seed_alone() -> None:
    draws = [[Mixture({"a": [9], "b": [9]}, seed)(n) for n in range(40)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_together_draw_the_same_order(world: int) -> None:
    ranks = [islice(TrainSampler(6, rank, world), 12 // world) for rank in range(world)]
    assert [n for turn in zip(*ranks, strict=True) for n in turn] == list(range(6, 18))


@pytest.mark.parametrize(("size", "world"), [(47, 1), (47, 2), (47, 4), (1, 3)])
def test_validation_shares_hold_each_sample_once(size: int, world: int) -> None:
    shares = [list(DistributedEvalSampler(size, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(n for share in shares for n in share if n < size) == list(range(size))


def test_patches_lie_inside_and_differ() -> None:
    view = RandomPatch(16)
    seen = {view(40, 50, np.random.default_rng(seed)) for seed in range(40)}
    assert len(seen) == 40
    assert all(v.window.top + 16 <= 40 and v.window.left + 16 <= 50 for v in seen)
    assert {(v.turns, v.flip) for v in seen} == {(t, f) for t in range(4) for f in (False, True)}


def test_patches_of_both_images_are_one_view(tmp_path: Path, save_image: Save) -> None:
    for split in ("train", "val"):
        path = save_image(f"pairs/{split}/noisy/GT/a.png", seed=3)
        negative = Image.fromarray(255 - read_image(path))
        (tmp_path / f"pairs/{split}/noisy/LQ").mkdir()
        negative.save(tmp_path / f"pairs/{split}/noisy/LQ/a.png")
    write_shards(
        paired_folder(tmp_path / "pairs").plan(), tmp_path / "s", form(), 0.0, num_workers=0
    )
    dataset = draws_of(tmp_path / "s", RandomPatch(16))
    for n in range(20):
        sample = dataset[n].sample
        assert sample.lq.shape == (16, 16, 3)
        assert np.array_equal(sample.lq, 255 - sample.gt)


def test_batches_do_not_depend_on_workers(shards: Path) -> None:
    alone, shared = (
        list(batches(data_module(shards, num_workers=workers), 4)) for workers in (0, 2)
    )
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a.lq, b.lq)
        assert torch.equal(a.gt, b.gt)
        assert a.key == b.key
    assert alone[0].lq.shape == (4, 3, 16, 16)
    assert alone[0].lq.dtype == torch.uint8


def test_resumed_data_goes_on_with_the_next_draw(shards: Path) -> None:
    straight = list(batches(data_module(shards), 5))
    resumed = data_module(shards)
    resumed.load_state_dict({"draws": 8, "skipped": 0, "drawn": {}})
    for a, b in zip(straight[2:], batches(resumed, 3), strict=True):
        assert torch.equal(a.lq, b.lq)


def test_validation_sees_every_sample_once(shards: Path) -> None:
    keys = [key for batch in data_module(shards).val_dataloader() for key in batch.key]
    assert sorted(keys) == [a.name for a in ShardSet(shards, "val").all()]


def test_validation_can_be_limited_per_task(pair_folder: Path, tmp_path: Path) -> None:
    plan = paired_folder(pair_folder).plan()
    train = [pair for pair in plan if pair.split == "train"]
    val = [replace(pair, split="val") for pair in train]  # type: ignore[type-var]
    write_shards(train + val, tmp_path / "s", form(), 0.0, num_workers=0)
    loader = data_module(tmp_path / "s", val_images_per_task=2).val_dataloader()
    words = Counter(word for batch in loader for word in batch.degradation)
    assert words == {"noisy": 2, "rainy": 2}


def test_damaged_training_sample_is_passed_over_by_name(shards: Path) -> None:
    spoil(shards, "noisy-train", "noisy1-000001")
    found = list(batches(data_module(shards), 6))
    keys = {key for batch in found for key in batch.key}
    skipped = [line for batch in found for line in batch.skipped]
    assert not any("noisy1" in key for key in keys)
    assert Counter(w for b in found for w in b.degradation) == {"noisy": 12, "rainy": 12}
    assert skipped
    assert all("noisy-train-000000.tar/noisy1-000001.lq.png" in line for line in skipped)


def test_image_smaller_than_the_patch_is_passed_over_by_name(shards: Path) -> None:
    dataset = draws_of(shards, RandomPatch(41))
    with pytest.raises(TooManyBadSamples, match=r"noisy.*48x40 pixels are fewer than"):
        dataset[0]


def test_too_many_damaged_samples_stop_training(shards: Path) -> None:
    data = data_module(shards)
    for _ in range(10):  # of each word one draw, and one skipped: 10 of at least 1000 draws
        data._count(torch.tensor([1, 1, 1]))
    data._check_skipped()
    data._count(torch.tensor([1, 1, 1]))
    with pytest.raises(TooManyBadSamples, match=r"11 of 0 .*fraction of 0\.01 allowed"):
        data._check_skipped()


def test_damaged_validation_sample_is_an_error(shards: Path) -> None:
    spoil(shards, "rainy-val", "rainy0-000000")
    with pytest.raises(BadImage, match=r"rainy-val-000000\.tar/rainy0-000000\.lq\.png"):
        list(data_module(shards).val_dataloader())


def test_mixed_sizes_in_a_batch_are_explained_or_padded(shards: Path) -> None:
    items = [draws_of(shards, augment)[0] for augment in (whole_image, RandomPatch(16))]
    with pytest.raises(ValueError, match=r"mixes image sizes \[\(16, 16\), \(40, 48\)\]"):
        collate(items)
    batch = collate_padded(items)
    assert batch.lq.shape == (2, 3, 40, 48)
    assert batch.size == [(40, 48), (16, 16)]
    assert np.array_equal(batch.lq[1, :, :16, :16].permute(1, 2, 0), items[1].sample.lq)
    assert batch.lq[1, :, 16:].sum() == batch.lq[1, :, :, 16:].sum() == 0


def test_validation_images_that_differ_in_size_come_one_by_one(
    pair_folder: Path, tmp_path: Path, shards: Path
) -> None:
    assert {len(batch.key) for batch in data_module(shards).val_dataloader()} == {2}
    cut = next((pair_folder / "val").glob("*/LQ/*"))
    for side in ("LQ", "GT"):
        path = cut.parents[1] / side / cut.name
        Image.open(path).crop((0, 0, 30, 20)).save(path)
    mixed = tmp_path / "mixed"
    write_shards(paired_folder(pair_folder).plan(), mixed, form(encoding="png"), 0.0, num_workers=0)
    found = list(data_module(mixed).val_dataloader())
    assert {len(batch.key) for batch in found} == {1}
    assert (20, 30) in {tuple(batch.lq.shape[2:]) for batch in found}
    padded = data_module(mixed, collate=collate_padded).val_dataloader()
    assert {len(batch.key) for batch in padded} == {2}


def test_batches_carry_the_numbers_of_their_draws(shards: Path) -> None:
    dataset = draws_of(shards, RandomPatch(16))
    assert collate([dataset[n] for n in (7, 9)]).number == [7, 9]


def test_captions_reach_their_samples(shards: Path) -> None:
    samples = ShardSet(shards, "train").all()
    write_captions(
        samples, shards, lambda images, sources: [f"a view: {s}" for s in sources], "test", 4
    )
    batch = next(batches(data_module(shards, captions=shards / CAPTIONS), 1))
    assert len(set(batch.caption)) > 1
    for caption, key in zip(batch.caption, batch.key, strict=True):
        number = key.rsplit("/", 1)[1].split("-")[0][-1]
        pictures = (f"train/{word}/GT/{word}{number}.png" for word in ("noisy", "rainy"))
        assert caption in {f"a view: {picture}" for picture in pictures}


def test_training_sample_without_caption_is_named(shards: Path) -> None:
    samples = ShardSet(shards, "train").all()
    write_captions(samples, shards, lambda images, sources: list(sources), "test", 4)
    data = data_module(shards, captions=shards / CAPTIONS)
    (shards / CAPTIONS).write_text("".join((shards / CAPTIONS).read_text().splitlines(True)[:1]))
    skipped = [line for batch in batches(data, 3) for line in batch.skipped]
    assert skipped
    assert all("has no caption" in line for line in skipped)


def test_counts_survive_a_checkpoint(shards: Path) -> None:
    data = data_module(shards)
    data._uncounted = torch.tensor([3, 4, 1])
    saved = data.state_dict()
    assert saved["drawn"] == {"noisy": 3, "rainy": 4}
    assert saved["skipped"] == 1
    assert data.state_dict() == saved  # counted once


def test_views_go_to_spawned_processes() -> None:
    view = pickle.loads(pickle.dumps(RandomPatch(16)))
    assert view(40, 50, np.random.default_rng(0)) == RandomPatch(16)(
        40, 50, np.random.default_rng(0)
    )


def test_shares_left_at_one_may_name_any_word() -> None:
    mixture = Mixture({"noisy": [4], "rainy": [4]}, 0, {"hazy": 1, "rainy": 3})
    assert Counter(mixture(n)[0] for n in range(40)) == {"noisy": 10, "rainy": 30}
    with pytest.raises(ValueError, match=r"task_weights names hazy"):
        Mixture({"noisy": [4]}, 0, {"hazy": 2})

"""Pairs into shards and back: deterministic, resumable, and every fault named."""

from __future__ import annotations

import os
import re
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from datamodules.dataset import load_whole
from datamodules.degradations import WORDS, degrade
from datamodules.errors import MissingShards, TooManyBadPairs
from datamodules.files import file_hash
from datamodules.images import BadImage, read_image
from datamodules.shards.index import INDEX, BadShard, read_index
from datamodules.shards.reader import ShardSet
from datamodules.shards.writer import write_shards
from datamodules.sources.synthetic import EmbeddedPhotos, PhotoFolder, SyntheticPairs
from tests.conftest import form, paired_folder

Save = Callable[..., Path]


def make(root: Path, folder: Path, **changes: Any) -> None:
    settings = {"form": form(), "max_skipped_fraction": 0.0, "num_workers": 0} | changes
    write_shards(paired_folder(root).plan(), folder, **settings)


def test_pairs_come_back_as_they_were(pair_folder: Path, tmp_path: Path) -> None:
    make(pair_folder, tmp_path / "shards")
    shards = ShardSet(tmp_path / "shards", "train")
    assert {word: len(found) for word, found in shards.tasks.items()} == {"noisy": 3, "rainy": 3}
    sample = load_whole(shards.tasks["rainy"][2])
    folder = pair_folder / "train" / "rainy"
    assert np.array_equal(sample.gt, read_image(folder / "GT" / "rainy2.png"))
    assert np.array_equal(sample.lq, read_image(folder / "LQ" / "rainy2.png"))
    assert (sample.degradation, sample.source) == ("rainy", "train/rainy/GT/rainy2.png")
    assert sample.key == "rainy-train-000001.tar/rainy2-000002"


def test_shards_are_plain_webdataset(pair_folder: Path, tmp_path: Path) -> None:
    make(pair_folder, tmp_path / "shards")
    urls = [str(p) for p in sorted((tmp_path / "shards").glob("noisy-train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 3
    assert samples[0]["lq.npy"].shape == (40, 48, 3)
    assert samples[0]["json"]["words"] == ["noisy"]


def test_same_input_gives_same_bytes(pair_folder: Path, tmp_path: Path) -> None:
    make(pair_folder, tmp_path / "a")
    make(pair_folder, tmp_path / "b", num_workers=2)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert all(file_hash(tmp_path / "a" / n) == file_hash(tmp_path / "b" / n) for n in names)
    assert {s.sha256 for s in read_index(tmp_path / "a")} == {
        file_hash(p) for p in (tmp_path / "a").glob("*.tar")
    }


def test_interrupted_making_goes_on(pair_folder: Path, tmp_path: Path) -> None:
    lq = pair_folder / "val" / "rainy" / "LQ" / "rainy0.png"
    whole = lq.read_bytes()
    lq.write_bytes(b"")
    with pytest.raises(BadImage, match=re.escape(str(lq))):
        make(pair_folder, tmp_path / "shards")
    assert not (tmp_path / "shards" / INDEX).exists()
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("*.tar")}
    assert finished
    lq.write_bytes(whole)
    make(pair_folder, tmp_path / "shards")
    assert all(p.stat().st_mtime_ns == time for p, time in finished.items())
    assert len(ShardSet(tmp_path / "shards", "val").all()) == 2


def _no_clean(root: Path, save: Save) -> str:
    (root / "train/noisy/GT/noisy1.png").unlink()
    return "does not exist"


def _other_size(root: Path, save: Save) -> str:
    save("pairs/train/noisy/LQ/noisy1.png", height=20)
    return "is 48x20 but .* is 48x40"


def _truncated(root: Path, save: Save) -> str:
    path = root / "train/noisy/LQ/noisy1.png"
    path.write_bytes(path.read_bytes()[:200])
    return "damaged"


def _transparent(root: Path, save: Save) -> str:
    empty = Image.fromarray(np.zeros((40, 48, 4), dtype=np.uint8))
    empty.save(root / "train/noisy/LQ/noisy1.png")
    return "transparent"


@pytest.mark.parametrize("spoil", [_no_clean, _other_size, _truncated, _transparent])
def test_bad_training_pair_is_left_out_and_recorded(
    pair_folder: Path, tmp_path: Path, save_image: Save, spoil: Callable[[Path, Save], str]
) -> None:
    reason = spoil(pair_folder, save_image)
    make(pair_folder, tmp_path / "shards", max_skipped_fraction=0.2)
    skipped = [line for shard in read_index(tmp_path / "shards") for line in shard.skipped]
    assert len(skipped) == 1
    assert re.search(rf"noisy1.*{reason}", skipped[0])
    assert len(ShardSet(tmp_path / "shards", "train").tasks["noisy"]) == 2


def test_too_many_bad_pairs_stop_the_stage(pair_folder: Path, tmp_path: Path) -> None:
    (pair_folder / "train/noisy/GT/noisy1.png").unlink()
    with pytest.raises(TooManyBadPairs, match=r"1 training .*allowed[\s\S]*noisy1"):
        make(pair_folder, tmp_path / "shards", max_skipped_fraction=0.1)
    assert not (tmp_path / "shards" / INDEX).exists()


def test_bad_validation_pair_is_an_error(pair_folder: Path, tmp_path: Path) -> None:
    (pair_folder / "val/noisy/GT/noisy0.png").unlink()
    with pytest.raises((BadImage, FileNotFoundError), match="noisy"):
        make(pair_folder, tmp_path / "shards", max_skipped_fraction=1.0)


def test_unknown_word_is_named(pair_folder: Path) -> None:
    (pair_folder / "train" / "rainny").mkdir()
    with pytest.raises(ValueError, match=r"unknown degradation 'rainny'; known words: hazy"):
        paired_folder(pair_folder).plan()


def test_own_words_are_taken(pair_folder: Path) -> None:
    (pair_folder / "train" / "rainy").rename(pair_folder / "train" / "dusty")
    plan = paired_folder(pair_folder, words=["dusty", "noisy", "rainy"]).plan()
    assert {pair.words[0] for pair in plan if pair.split == "train"} == {"dusty", "noisy"}


@pytest.mark.parametrize("missing", ["val", "train/noisy/LQ", "train/noisy/GT"])
def test_missing_folder_is_named(pair_folder: Path, tmp_path: Path, missing: str) -> None:
    (pair_folder / missing).rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=missing):
        paired_folder(pair_folder).plan()


def test_dotted_and_like_names_do_not_merge(tmp_path: Path, save_image: Save) -> None:
    for name in ("0048_0.9_0.2", "0048_0.9_0.16", "0048_0,9_0,2"):
        for split in ("train", "val"):
            save_image(f"pairs/{split}/hazy/GT/{name}.png")
            save_image(f"pairs/{split}/hazy/LQ/{name}.png")
    make(tmp_path / "pairs", tmp_path / "shards", form=form(shard_mb=1))
    assert len(ShardSet(tmp_path / "shards", "train").tasks["hazy"]) == 3


def test_synthetic_pairs_degrade_the_same_crops(tmp_path: Path, save_image: Save) -> None:
    for split in ("train", "val"):
        save_image(f"photos/{split}/one.png", height=90, width=120)
    photos = PhotoFolder(str(tmp_path / "photos"))
    source = SyntheticPairs(photos, {"train": 2, "val": 1}, 48, (1.0, 1.5), None, False, seed=3)
    plan = source.plan()
    assert len(plan) == 3 * len(WORDS)
    assert {pair.source for pair in plan} == {"train/one.png", "val/one.png"}
    made = {pair.words: pair.make() for pair in plan if pair.split == "train" and pair.draw == 1}
    cleans = [clean for _, clean in made.values()]
    assert all(np.array_equal(clean, cleans[0]) for clean in cleans)
    assert cleans[0].shape == (48, 48, 3)
    again = next(p for p in source.plan() if p == plan[4]).make()
    assert all(np.array_equal(a, b) for a, b in zip(again, plan[4].make(), strict=True))


def test_photo_smaller_than_the_crop_is_named(tmp_path: Path, save_image: Save) -> None:
    for split in ("train", "val"):
        save_image(f"photos/{split}/small.png", height=40, width=120)
    photos = PhotoFolder(str(tmp_path / "photos"))
    source = SyntheticPairs(photos, {"train": 1, "val": 1}, 48, (1.0, 1.0), ["noisy"], False, 0)
    with pytest.raises(BadImage, match=r"small\.png is 120x40, smaller than the crop of 48"):
        source.plan()[0].make()


def test_embedded_photos_never_share_a_split() -> None:
    photos = EmbeddedPhotos(["chelsea", "rocket"], ["coffee"]).photos()
    assert [photo.split for photo in photos] == ["train", "train", "val"]
    assert all(photo.path.is_file() for photo in photos)
    with pytest.raises(ValueError, match="both train and val"):
        EmbeddedPhotos(["chelsea"], ["chelsea"]).photos()
    with pytest.raises(ValueError, match="unknown photos"):
        EmbeddedPhotos(["lenna"], []).photos()


def test_unknown_synthetic_word_is_named() -> None:
    with pytest.raises(ValueError, match="dusty"):
        degrade("dusty", np.zeros((32, 32, 3), np.uint8), 0)


def _cut(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-700])
    return "bytes, the index says"


def _gone(path: Path) -> str:
    path.unlink()
    return "missing, though the index lists it"


def _scrambled(path: Path) -> str:
    path.write_bytes(b"\1" * path.stat().st_size)
    return "not a whole tar"


def _fewer_samples(path: Path) -> str:
    size = path.stat().st_size
    with tarfile.open(path) as tar:
        second_sample = tar.getmembers()[3].offset
    path.write_bytes(path.read_bytes()[:second_sample].ljust(size, b"\0"))
    return "holds 1 samples, the index says 2"


@pytest.mark.parametrize("spoil", [_cut, _gone, _scrambled, _fewer_samples])
def test_spoilt_shard_is_named(
    pair_folder: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    make(pair_folder, tmp_path / "shards")
    reason = spoil(tmp_path / "shards" / "rainy-train-000000.tar")
    with pytest.raises(BadShard, match=rf"rainy-train-000000\.tar.*{reason}"):
        ShardSet(tmp_path / "shards", "train")


def test_missing_and_damaged_index_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingShards, match="no shard index"):
        read_index(tmp_path)
    (tmp_path / INDEX).write_text('{"shards": [{"name": "x"}]}')
    with pytest.raises(ValueError, match="not a shard index"):
        read_index(tmp_path)


def test_photographs_of_like_names_keep_apart(tmp_path: Path, save_image: Save) -> None:
    names = ("写真", "图片", "a" * 70, "a" * 71)
    for split in ("train", "val"):
        for name in names:
            save_image(f"photos/{split}/{name}.png", height=40, width=60)
    photos = PhotoFolder(str(tmp_path / "photos"))
    draws = {"train": 2, "val": 1}
    source = SyntheticPairs(photos, draws, 32, (1.0, 1.0), ["noisy"], False, seed=0)
    write_shards(source.plan(), tmp_path / "s", form(), 0.0, num_workers=0)
    assert len(ShardSet(tmp_path / "s", "train").tasks["noisy"]) == 8


def test_two_samples_of_one_key_are_named(pair_folder: Path, tmp_path: Path) -> None:
    plan = paired_folder(pair_folder).plan()
    with pytest.raises(ValueError, match=r"two samples have the key .*noisy0-000000"):
        write_shards([*plan, plan[0]], tmp_path / "s", form(), 0.0, num_workers=0)
    with pytest.raises(ValueError, match="source has no sample"):
        write_shards([], tmp_path / "s", form(), 0.0, num_workers=0)


def test_one_deleted_shard_is_made_again_alone(pair_folder: Path, tmp_path: Path) -> None:
    make(pair_folder, tmp_path / "shards")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("*.tar")}
    data = (tmp_path / "shards" / "rainy-train-000000.tar").read_bytes()
    for name in ("rainy-train-000000.tar", INDEX):
        (tmp_path / "shards" / name).unlink()
    make(pair_folder, tmp_path / "shards")
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("*.tar")}
    assert {n for n in before if before[n] != after[n]} == {"rainy-train-000000.tar"}
    assert (tmp_path / "shards" / "rainy-train-000000.tar").read_bytes() == data


def test_shard_cut_short_after_it_was_finished_is_made_again(
    pair_folder: Path, tmp_path: Path
) -> None:
    make(pair_folder, tmp_path / "shards")
    shard = tmp_path / "shards" / "rainy-train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    (tmp_path / "shards" / INDEX).unlink()
    make(pair_folder, tmp_path / "shards")
    assert shard.read_bytes() == whole


def test_clean_image_without_degraded_one_is_counted(
    pair_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pair_folder / "train/noisy/LQ/noisy1.png").unlink()
    paired_folder(pair_folder).plan()
    assert "1 of 3 clean images have no LQ image" in caplog.text


class Deadly:
    """A sample at which its process is killed."""

    split, words, key, source, pixels = "train", ("noisy",), "k", "s", 1

    def make(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_process_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"was killed.*lower `num_workers`"):
        write_shards([Deadly()], tmp_path / "s", form(), 0.0, num_workers=1)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, r"^crop=0"),
        ({"zoom": (2.0, 1.0)}, r"^zoom"),
        ({"draws": {"train": 1}}, r"^draws"),
        ({"words": "noisy"}, r"^words=noisy: give a list"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    settings = {"draws": {"train": 1, "val": 1}, "crop": 32, "zoom": (1.0, 1.0), "words": None}
    with pytest.raises(ValueError, match=message):
        SyntheticPairs(
            EmbeddedPhotos(["chelsea"], ["coffee"]), **(settings | change), on_the_fly=False, seed=0
        ).plan()

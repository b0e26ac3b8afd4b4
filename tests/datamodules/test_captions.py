"""Captions: BLIP through its real classes, each clean image once, nothing lost when cut off."""

from __future__ import annotations

import json
import os
import re
import resource
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from datamodules.captioners import Captioner
from datamodules.captions import CAPTIONS, Counts, read_captions, write_captions
from datamodules.images import Pixels
from datamodules.shards.reader import SampleAddress, ShardSet
from datamodules.shards.writer import write_shards
from modules.captioning.blip import BlipCaptioner, MissingBlip
from pipeline.distributed import Rank, use_own_gpu
from pipeline.errors import message
from tests.conftest import form, paired_folder, photograph
from tests.tiny_blip import VOCABULARY, save_tiny_blip

PARTS = "captions.part-*.jsonl"


@pytest.fixture
def samples(pair_folder: Path, tmp_path: Path) -> list[SampleAddress]:
    """Six pairs with three distinct clean images, in shards of two."""
    pairs = paired_folder(pair_folder).plan()
    write_shards(pairs, tmp_path / "s", form(encoding="png"), 0.0, num_workers=0)
    return list(ShardSet(tmp_path / "s", "train").all())


@pytest.fixture
def many(tmp_path: Path, save_image: Callable[..., Path]) -> list[SampleAddress]:
    """Nine pairs with a clean image each."""
    for split, count in (("train", 9), ("val", 1)):
        for i in range(count):
            for kind in ("LQ", "GT"):
                save_image(f"many/{split}/noisy/{kind}/{i}.png", 16, 16, seed=i)
    pairs = paired_folder(tmp_path / "many").plan()
    write_shards(pairs, tmp_path / "m", form(), 0.0, num_workers=0)
    return list(ShardSet(tmp_path / "m", "train").all())


def spoil(sample: SampleAddress, field: str) -> None:
    """Overwrite a file of a sample inside its shard, which keeps its size and time of change."""
    offset, size, _ = sample.store.table(sample.shard)[sample.row][field].tolist()
    with sample.store.open(sample.shard) as shard:
        path = Path(shard.name)
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


class Counting:
    """A captioner that counts images, and may be cut off after some batches."""

    def __init__(self, batches: int = 99) -> None:
        self.sources: list[str] = []
        self.batches = batches

    def __call__(self, images: Sequence[Pixels], sources: Sequence[str]) -> list[str]:
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        self.sources += sources
        return [f"{s} has colour {i.mean():.3f}" for s, i in zip(sources, images, strict=True)]


def undisturbed(samples: Sequence[SampleAddress], folder: Path, batch_size: int) -> bytes:
    folder.mkdir()
    write_captions(samples, folder, Counting(), "test", batch_size)
    return (folder / CAPTIONS).read_bytes()


def test_blip_captions_from_disk(tmp_path: Path) -> None:
    captioner = BlipCaptioner(str(save_tiny_blip(tmp_path)), max_new_tokens=5, device="cpu")
    images = [photograph(40, 60, seed) for seed in range(6)]
    captions = captioner.caption(images, ["x"] * 6)
    assert len(captions) == 6
    assert len(set(captions)) > 1
    assert all(set(caption.split()) <= set(VOCABULARY) for caption in captions)
    assert captions == captioner.caption(images, ["x"] * 6)
    assert {"config.json", "model.safetensors"} <= {p.name for p in captioner.files()}
    assert captioner.by == str(tmp_path)


def test_blip_runs_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, model = BlipCaptioner(str(save_tiny_blip(tmp_path)), max_new_tokens=5)._load()
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize(
    ("gpus", "local", "chosen"), [(0, 1, []), (4, 0, []), (4, 3, [3]), (1, 3, [0]), (2, 3, [1])]
)
def test_each_process_of_a_machine_has_its_gpu(
    gpus: int, local: int, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    use_own_gpu(Rank(local, local + 1, local))
    assert current == chosen


@pytest.mark.parametrize("model", ["./no/such/folder", "Salesforce/blip-image-captioning-large"])
def test_missing_blip_says_what_to_do(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    captioner = BlipCaptioner(model, max_new_tokens=5, device="cpu")
    with pytest.raises(MissingBlip, match=re.escape(repr(model))) as missing:
        captioner.caption([photograph(40, 60)], ["x"])
    assert "set captions.captioner.model to their folder" in message(missing.value)


def test_another_captioner_is_a_class_with_one_method(
    samples: list[SampleAddress], tmp_path: Path
) -> None:
    class ByName(Captioner):
        def caption(self, images: Sequence[Pixels], sources: Sequence[str]) -> list[str]:
            return [f"a photograph called {source}" for source in sources]

    mine = ByName()
    assert (mine.by, mine.files()) == ("ByName", [])
    write_captions(samples, tmp_path, mine.caption, mine.by, 2, check=mine.check)
    first = json.loads((tmp_path / CAPTIONS).read_text().splitlines()[0])
    assert first["caption"] == "a photograph called train/noisy/GT/noisy0.png"
    assert first["by"] == "ByName"


def test_every_distinct_clean_image_is_captioned_once(
    samples: list[SampleAddress], tmp_path: Path
) -> None:
    counting = Counting()
    assert write_captions(samples, tmp_path, counting, "test", 2) == Counts(3, 0)
    assert counting.sources == [f"train/noisy/GT/noisy{i}.png" for i in range(3)]
    captions = read_captions(tmp_path / CAPTIONS)
    assert list(captions) == list(dict.fromkeys(s.metadata()["gt_sha256"] for s in samples))
    assert all(
        captions[s.metadata()["gt_sha256"]].endswith(f"colour {s.image('gt').mean():.3f}")
        for s in samples
    )
    assert sorted(p.name for p in tmp_path.glob("*captions*")) == [CAPTIONS]


def test_nothing_is_done_where_captions_are(samples: list[SampleAddress], tmp_path: Path) -> None:
    write_captions(samples, tmp_path, Counting(), "test", 2)
    (tmp_path / PARTS.replace("*", "1-killed")).write_text("")
    nobody = Counting(batches=0)
    assert write_captions(samples, tmp_path, nobody, "test", 2) == Counts(3, 0)
    assert list(tmp_path.glob(PARTS)) == []


def test_refused_work_is_not_begun(samples: list[SampleAddress], tmp_path: Path) -> None:
    def refuse(sources: Sequence[str]) -> None:
        raise ValueError(f"not {len(sources)}")

    with pytest.raises(ValueError, match="not 3"):
        write_captions(samples, tmp_path, Counting(batches=0), "test", 2, check=refuse)


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_interrupted_captions_go_on(many: list[SampleAddress], tmp_path: Path, cut: int) -> None:
    expected = undisturbed(many, tmp_path / "whole", 2)
    with pytest.raises(KeyboardInterrupt):
        write_captions(many, tmp_path, Counting(batches=3), "test", 2)
    assert not (tmp_path / CAPTIONS).exists()
    (part,) = tmp_path.glob(PARTS)
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:2]) + lines[2][:cut])  # as a kill may leave it
    counting = Counting()
    write_captions(many, tmp_path, counting, "test", 2)
    assert len(counting.sources) == 9 - 2 * 2
    assert (tmp_path / CAPTIONS).read_bytes() == expected


def test_batches_of_other_images_are_not_taken(many: list[SampleAddress], tmp_path: Path) -> None:
    expected = undisturbed(many, tmp_path / "whole", 2)
    with pytest.raises(KeyboardInterrupt):
        write_captions(many, tmp_path, Counting(batches=2), "test", 3)
    (tmp_path / PARTS.replace("*", "0-x")).write_text('[]\n{"batch": 77, "images": []}\nnull\n')
    write_captions(many, tmp_path, Counting(), "test", 2)
    assert (tmp_path / CAPTIONS).read_bytes() == expected


def test_ranks_share_the_batches_and_wait_for_nobody_but_rank_0(
    many: list[SampleAddress], tmp_path: Path
) -> None:
    expected = undisturbed(many, tmp_path / "whole", 2)
    workers = [Counting() for _ in range(3)]
    for rank in (2, 1, 0):
        counts = write_captions(many, tmp_path, workers[rank], "test", 2, rank=rank, world=3)
    assert counts == Counts(9, 0)
    names = [
        [f"train/noisy/GT/{i}.png" for i in numbers]
        for numbers in ([0, 1, 6, 7], [2, 3, 8], [4, 5])
    ]
    assert [worker.sources for worker in workers] == names
    assert (tmp_path / CAPTIONS).read_bytes() == expected


def test_what_other_ranks_left_is_kept(many: list[SampleAddress], tmp_path: Path) -> None:
    expected = undisturbed(many, tmp_path / "whole", 1)
    workers = [Counting(batches=2), Counting(batches=1), Counting()]
    for rank in range(2):
        with pytest.raises(KeyboardInterrupt):
            write_captions(many, tmp_path, workers[rank], "test", 1, rank=rank, world=2)
    write_captions(many, tmp_path, workers[2], "test", 1)
    assert (tmp_path / CAPTIONS).read_bytes() == expected
    assert max(Counter(s for worker in workers for s in worker.sources).values()) == 1


def test_rank_0_waits_for_the_other_ranks(many: list[SampleAddress], tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    first_is_done = threading.Event()

    def fast(images: Sequence[Pixels], sources: Sequence[str]) -> list[str]:
        captions = first(images, sources)
        if len(first.sources) == 5:
            first_is_done.set()
        return captions

    def slow(images: Sequence[Pixels], sources: Sequence[str]) -> list[str]:
        assert first_is_done.wait(30)
        return second(images, sources)

    other = threading.Thread(
        target=write_captions,
        args=(many, tmp_path, slow, "test", 1),
        kwargs={"rank": 1, "world": 2},
    )
    other.start()
    write_captions(many, tmp_path, fast, "test", 1, world=2)
    other.join()
    assert (len(first.sources), len(second.sources)) == (5, 4)
    assert len(read_captions(tmp_path / CAPTIONS)) == 9
    assert list(tmp_path.glob(PARTS)) == []


def test_missing_and_damaged_captions_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no caption file {tmp_path}") as missing:
        read_captions(tmp_path / CAPTIONS)
    assert "run `make captions`" in message(missing.value)
    for line in ('{"gt_sha256": "x"}', "[]", "{", "3"):
        (tmp_path / CAPTIONS).write_text(line + "\n")
        with pytest.raises(ValueError, match=r"captions\.jsonl:1 is damaged") as damaged:
            read_captions(tmp_path / CAPTIONS)
        assert "Delete the file and run `make captions`" in message(damaged.value)


def test_captions_with_odd_line_separators_come_back(
    samples: list[SampleAddress], tmp_path: Path
) -> None:
    odd = "a\u2028b\x85c\x0bd\re"
    write_captions(samples, tmp_path, lambda i, s: [odd] * len(s), "test", 2)
    assert set(read_captions(tmp_path / CAPTIONS).values()) == {odd}


def test_damaged_images_and_samples_are_recorded_and_stop_nothing(
    samples: list[SampleAddress], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twins = [s for s in samples if s.metadata()["gt_sha256"] == samples[0].metadata()["gt_sha256"]]
    assert len(twins) == 2
    for twin in twins:
        spoil(twin, "gt")
    spoil(samples[1], "json")
    assert write_captions(samples, tmp_path, Counting(), "test", 2) == Counts(2, 2)
    assert len(read_captions(tmp_path / CAPTIONS)) == 2
    lines = [json.loads(line) for line in (tmp_path / CAPTIONS).read_text().splitlines()]
    reasons = [line["damaged"] for line in lines if "damaged" in line]
    assert [line.get("source") for line in lines if "damaged" in line] == [
        "train/noisy/GT/noisy0.png",
        None,
    ]
    assert all(reason in caplog.text for reason in reasons)
    assert twins[1].name in reasons[0]
    assert samples[1].name in reasons[1]


@pytest.mark.parametrize("number", [2, 5])
def test_one_whole_copy_of_an_image_is_enough(
    samples: list[SampleAddress], tmp_path: Path, number: int
) -> None:
    spoil(samples[number], "gt")
    assert samples[2].metadata()["gt_sha256"] == samples[5].metadata()["gt_sha256"]
    assert write_captions(samples, tmp_path, Counting(), "test", 2) == Counts(3, 0)


def test_lost_shard_stops_nothing(many: list[SampleAddress], tmp_path: Path) -> None:
    with many[0].store.open(many[0].shard) as shard:
        Path(shard.name).unlink()
    counts = write_captions(many, tmp_path, Counting(), "test", 2)
    assert counts.damaged > 0
    assert sum(counts) == 9


def test_wordless_caption_counts_as_none(samples: list[SampleAddress], tmp_path: Path) -> None:
    def mute(images: Sequence[Pixels], sources: Sequence[str]) -> list[str]:
        return ["" if "noisy1" in source else "a view" for source in sources]

    assert write_captions(samples, tmp_path, mute, "test", 2) == Counts(2, 1)
    assert "test gave no words" in (tmp_path / CAPTIONS).read_text()


def test_captioner_that_miscounts_is_named(samples: list[SampleAddress], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine gave 1 captions for 2 images"):
        write_captions(samples, tmp_path, lambda images, sources: ["x"], "mine", 2)


def test_unwritable_folder_is_named(samples: list[SampleAddress], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*/file/captions\.part-0"):
        write_captions(samples, tmp_path / "file", Counting(), "test", 2)


def test_full_disk_loses_nothing(many: list[SampleAddress], tmp_path: Path) -> None:
    expected = undisturbed(many, tmp_path / "whole", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        with pytest.raises(OSError, match="Finished work so far is kept"):
            # Rank 1 shows no progress, which pytest would write to a file.
            write_captions(many, tmp_path, Counting(), "test", 1, rank=1, world=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    counting = Counting()
    write_captions(many, tmp_path, counting, "test", 1)
    assert 5 <= len(counting.sources) < 9
    assert (tmp_path / CAPTIONS).read_bytes() == expected
